"""Paths that are of this machine alone. Read without torch, which takes seconds to be there."""

from pathlib import Path

from .errors import UserError


def is_place(path: str) -> bool:
    """Whether it can be no hub name."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def check_teacher(path: str | None) -> None:
    """UserError for a directory that there is not."""
    if path is not None and is_place(path) and not Path(path).expanduser().is_dir():
        raise UserError(f"teacher.path={path} does not exist: give a directory or a hub name")
