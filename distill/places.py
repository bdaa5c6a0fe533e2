"""Paths that are of this machine alone. Read without torch, which takes seconds to be there."""

import os.path

from .errors import UserError


def is_place(path: str) -> bool:
    """Whether it can be no hub name."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def directory(path: str) -> str | None:
    """Where it is; None where there is none."""
    # Not Path's own, which of somebody that there is not says only that it cannot tell.
    local = os.path.expanduser(path)
    return local if os.path.isdir(local) else None


def check_teacher(path: str | None) -> None:
    """UserError for a directory that there is not."""
    if path is not None and is_place(path) and directory(path) is None:
        raise UserError(f"teacher.path={path} does not exist: give a directory or a hub name")
