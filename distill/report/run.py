"""Reads the artefacts of one run directory."""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import UserError, reason
from ..mixer import told

log = logging.getLogger(__name__)


class ArtefactError(Exception):
    """An artefact that a section needs is missing or damaged: one line that names the file."""


class Run:
    """A run directory. Every reader raises `ArtefactError` when its file cannot be used.

    UserError: `path` is not a run directory.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise UserError(f"{path}: no such run directory")
        if not (path / "config.yaml").exists() and not (path / "measurements").exists():
            raise UserError(f"{path}: not a run directory, it has neither config.yaml nor measurements/")
        self.path = path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, empty when it was not kept or is damaged: what was measured can still be told."""
        file = self.path / "config.yaml"
        if not file.exists():
            return {}
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            log.warning("report: %s is damaged, and left out: %s", file, reason(error))
            return {}
        return config if isinstance(config, dict) else {}

    @property
    def title(self) -> str:
        return str(self.setting("recipe") or self.path.resolve().name)

    @property
    def identity(self) -> list[tuple[str, str]]:
        """What tells this run from others: name and value, for the head of the page."""
        named = {
            "teacher": self.setting("teacher.path"),
            "teacher's weights": "quantised" if self.setting("teacher.quantization") else None,
            "mixer": told(self.setting("mixer") or {}),
            "seed": self.setting("seed"),
        }
        return [(name, str(value)) for name, value in named.items() if value not in (None, "")]

    def setting(self, key: str) -> Any:
        """The configuration's value at a dotted key, None when it has none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object. NaN and infinities, which JSON does not know, are read as null."""
        try:
            content = json.loads(self._file(name).read_text(encoding="utf-8"), parse_constant=lambda _: None)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtefactError(f"{name} is damaged or cut off: {error}") from error
        if not isinstance(content, dict):
            raise ArtefactError(f"{name} does not hold a JSON object")
        return content

    def measurement(self, section: str) -> dict[str, Any]:
        """measurements/SECTION.json; ArtefactError, too, where it holds nothing but the reason why not."""
        found = self.json(f"measurements/{section}.json")
        if "skipped" in found:
            raise ArtefactError(str(found["skipped"]))
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, in order, without lines that a killed run left unfinished."""
        lines = self._file("metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in map(_object, lines) if line]

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Every tensor of a safetensors file."""
        try:
            return load_file(self._file(name))
        except SafetensorError as error:
            raise ArtefactError(f"{name} is damaged or cut off: {error}") from error

    def _file(self, name: str) -> Path:
        file = self.path / name
        if not file.is_file():
            raise ArtefactError(f"{name} is missing")
        return file


def _object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
