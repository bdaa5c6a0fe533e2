"""The run directory: what a run leaves behind, and where."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from .config import Config
from .errors import UserError
from .whole import whole


class RunDirectory:
    """Names the parts of a run directory, writes the small ones, and tells what the stages took.

    seconds, peak_bytes: of every stage its wall-clock time, and the most GPU memory that it held where there is one.
    ways: of every stage, by what it did, whether kernels or PyTorch did it.
    """

    def __init__(self, config: Config):
        """Writes nothing yet; UserError where a run already lives."""
        self.path, self.config = Path(config.run_dir).expanduser(), config
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self.ways: dict[str, dict[str, list[str]]] = {}
        if any((self.path / part).exists() for part in ("config.yaml", "student", "teacher", "report")):
            raise self.taken()

    def taken(self) -> UserError:
        return UserError(f"run_dir={self.path} already holds a run; choose another directory or remove it")

    def create(self) -> None:
        """Makes the directory and leaves config.yaml in it; UserError where that cannot be done."""
        resolved = OmegaConf.to_yaml(OmegaConf.create(asdict(self.config)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Of two runs that were given one directory, one makes it.
            with (self.path / "config.yaml").open("x", encoding="utf-8") as file:
                file.write(resolved)
        except FileExistsError as error:
            raise self.taken() from error
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be written: {error.strerror}") from error

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"

    @cached_property
    def logger(self) -> Any:
        """The configured logger, one for all stages; False where there is none."""
        return hydra.utils.instantiate(self.config.logger, save_dir=str(self.path)) if self.config.logger else False

    def folder(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(exist_ok=True)
        return path

    def write_measurement(self, section: str, values: dict[str, Any]) -> None:
        """measurements/SECTION.json, which the report renders. NaN has no place in JSON and becomes null."""
        with whole(self.folder("measurements") / f"{section}.json") as file:
            file.write_text(json.dumps(_finite(values), indent=1), encoding="utf-8")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what the block takes to `seconds` and `peak_bytes`; blocks stand beside one another, never within."""
        start = time.monotonic()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start
            if torch.cuda.is_initialized():
                self.peak_bytes[stage] = max(self.peak_bytes.get(stage, 0), torch.cuda.max_memory_allocated())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
