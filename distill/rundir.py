"""The run directory: what a run leaves behind, and where."""

import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from . import ranks
from .config import Config, flat
from .errors import InUse, UserError, reason
from .progress import Progress
from .report.run import Run
from .sweep.state import unmark
from .whole import whole

#: The measurement that says what the texts were.
TEXTS = "texts"
#: Keys that may differ where a run is resumed.
FREE = ("resume", "run_dir", "checkpoint_minutes", "compile")
#: How often a lock that is taken is tried, and seconds in between.
LOOKS, PAUSE = 10, 0.05


class RunDirectory:
    """Names the parts of a run directory, writes the small ones, and tells what the stages took.

    seconds, peak_bytes: of every stage its wall-clock time, and the most GPU memory that it held where there is one.
    ways: of every stage, by what it did, the ways in which that was done.

    Of the processes of a run the first alone writes here; what others would write goes where it is soon forgotten.
    """

    def __init__(self, config: Config):
        """Writes nothing yet; UserError where a run already lives, which is not to be resumed or is another."""
        self.path, self.config = Path(config.run_dir).expanduser(), config
        self.progress = Progress(self.path / "progress", config.resume)
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self.ways: dict[str, dict[str, list[str]]] = {}
        self.scratch = TemporaryDirectory(prefix="distill-") if ranks.rank() else None
        self.begun = ranks.first(self.look)

    def look(self) -> bool:
        """Whether a run has begun here, see `__init__`."""
        try:
            begun = any((self.path / part).exists() for part in ("config.yaml", "student", "teacher", "report"))
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be read: {error.strerror}") from error
        if begun and not self.config.resume:
            raise self.taken()
        if begun:
            self.check_same()
        return begun

    def taken(self) -> UserError:
        return UserError(
            f"run_dir={self.path} already holds a run; choose another directory, remove it, or go on with resume=true"
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do in a directory that is resumed."""
        last = self.teacher if self.config.goal == "teacher" else self.path / "report"
        return ranks.told(last.exists())

    def already(self) -> Path:
        """Says so."""
        self.progress.drop()
        print(f"{self.path} is finished: nothing is left to resume")
        return self.path

    def check_same(self) -> None:
        """UserError where the run that began here was asked for something else."""
        try:
            then = OmegaConf.load(self.path / "config.yaml")
        except (OSError, YAMLError) as error:
            file = self.path / "config.yaml"
            raise UserError(
                f"run_dir={self.path} cannot be resumed: {file}: {reason(error)}; choose another"
            ) from error
        both = then, OmegaConf.create(asdict(self.config))
        before, now = (dict(flat(OmegaConf.to_container(each))) for each in both)
        for key in sorted(before.keys() | now.keys()):
            if key not in FREE and before.get(key) != now.get(key):
                raise UserError(
                    f"{key}={now.get(key)}: the run in run_dir={self.path} began with {before.get(key)}; resume it so, "
                    "or choose another directory"
                )

    def create(self) -> None:
        """Makes the directory and leaves config.yaml in it, unless it is resumed; UserError where that cannot be done,
        another run writes to it, or not all processes of this one see it."""
        ranks.first(self.make)
        if ranks.anywhere(not (self.path / "config.yaml").exists()):
            raise UserError(f"run_dir={self.path} is not there on every node; choose one on a disk that they share")

    def make(self) -> None:
        resolved = OmegaConf.to_yaml(OmegaConf.create(asdict(self.config)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            unmark(self.path)
            if not self.begun:
                if (self.path / "config.yaml").exists():
                    raise self.taken()
                with whole(self.path / "config.yaml") as file:
                    file.write_text(resolved, encoding="utf-8")
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be written: {error.strerror}") from error

    def begin_with(self, digests: Callable[[], dict[str, str]]) -> None:
        """Notes what the texts are, see `data.digest`; UserError where the run that is resumed began with others."""
        ranks.first(lambda: self.note(digests()))

    def note(self, digests: dict[str, str]) -> None:
        file = self.path / "measurements" / f"{TEXTS}.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for name in digests.keys() & before.keys():
            if digests[name] != before[name]:
                raise UserError(
                    f"data: the text of {name} is not what it was when the run in run_dir={self.path} began; bring it "
                    "back, or choose another directory"
                )
        self.write_measurement(TEXTS, digests)

    def lock(self) -> None:
        """Has this directory to itself until `release`, or until the process ends, however that is."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, handle)
        for _ in range(LOOKS):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # Who only looks whether there is a run has it for a moment.
                time.sleep(PAUSE)
        raise InUse(f"run_dir={self.path}: another run is writing to it; wait for it, or choose another")

    def told(self, stage: str) -> dict[str, Any]:
        """What is remembered of a stage that is finished."""
        peak = self.peak_bytes.get(stage)
        return {"seconds": self.seconds[stage], "peak_bytes": peak, "ways": self.ways[stage]}

    def remember(self, stage: str, told: dict[str, Any]) -> int:
        """Takes that up again; returns the tokens that the stage has seen."""
        self.seconds[stage], self.ways[stage] = told["seconds"], told["ways"]
        if told["peak_bytes"] is not None:
            self.peak_bytes[stage] = told["peak_bytes"]
        tokens: int = told["tokens"]
        return tokens

    def forget(self, stage: str, after: int) -> None:
        """Drops what an attempt at a stage that was not finished has logged after a step."""
        if self.metrics.exists():
            kept = [line for line in Run(self.path).metrics() if line["stage"] != stage or line["step"] <= after]
            with whole(self.metrics) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

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
        if not self.config.logger or ranks.rank():
            return False
        return hydra.utils.instantiate(self.config.logger, save_dir=str(self.path))

    def folder(self, name: str) -> Path:
        path = (Path(self.scratch.name) if self.scratch else self.path) / name
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
