"""What is not for this user to read or to write is one line that names it. Root, whom no mode stops, is nobody here."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill.__main__ import mistake
from distill.data import prepare
from distill.errors import UserError
from distill.rundir import RunDirectory
from distill.teacher import load_teacher

from .conftest import Compose

NOBODY = 65534


@contextmanager
def as_a_user() -> Iterator[None]:
    before = os.geteuid()
    if not before:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody reaches, which those of other tests are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(("mode", "done"), [(0o555, "written"), (0o000, "read")])
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_directory(mode: int, done: str, begun: bool, small: Compose, shared: Path):
    folder = shared / "folder"
    config = small(f"run_dir={folder / 'run'}", "resume=true")
    folder.mkdir()
    if begun:
        first = RunDirectory(config)
        first.create()
        first.release()
        (folder / "run").chmod(0o555)
    folder.chmod(mode)
    with as_a_user(), pytest.raises(UserError) as told:
        RunDirectory(config).create()
    assert str(told.value) == f"run_dir={folder / 'run'} cannot be {done}: Permission denied"
    folder.chmod(0o755)


def test_a_text(small: Compose, shared: Path):
    config = small(f"data.path={shared / 'closed' / 'text.txt'}")
    tokenizer = load_teacher(config.teacher, config.data.context).tokenizer
    (shared / "closed").mkdir()
    (shared / "closed" / "text.txt").write_text("text")
    (shared / "closed").chmod(0o000)
    with as_a_user(), pytest.raises(PermissionError) as told:
        prepare(config.data, tokenizer, 0)
    cure = "Permission denied; allow it to this user, or choose another place"
    assert mistake(told.value, "run") == f"{shared / 'closed' / 'text.txt'}: {cure}"
    (shared / "closed").chmod(0o755)
