"""What is written is whole or not there, at whatever moment a run is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.errors import UserError
from distill.rundir import RunDirectory
from distill.whole import whole

from .conftest import Compose


def write(path: Path, text: str) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(text)
        assert not path.exists() or path.read_text() != text


def test_a_file_takes_the_place_of_another(tmp_path: Path):
    for text in ("one", "other"):
        write(tmp_path / "file.json", text)
        assert (tmp_path / "file.json").read_text() == text
    assert os.listdir(tmp_path) == ["file.json"]


def test_an_error_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "file.json"
    write(path, "old")
    with pytest.raises(ValueError), whole(path) as unfinished:
        unfinished.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and (tmp_path / "file.json.unfinished").read_text() == "half"
    write(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.json"]


def test_a_full_disk_is_told_of_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch and safetensors have errors of their own for it."""
    for free, told in ((2**20, r"unexpected pos"), (0, r"No space left on device: '.*file.ckpt'")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        with pytest.raises((OSError, RuntimeError), match=told), whole(tmp_path / "file.ckpt"):
            raise RuntimeError("unexpected pos 64 vs 0")


def test_a_folder_is_there_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "student"
    (tmp_path / "student.unfinished" / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), whole(path) as unfinished:
        assert not unfinished.exists()
        unfinished.mkdir()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with whole(path) as unfinished:
        (unfinished / "below").mkdir(parents=True)
        (unfinished / "below" / "weights").write_text("whole")
        assert not path.exists()
    assert (path / "below" / "weights").read_text() == "whole" and os.listdir(tmp_path) == ["student"]


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    settle, replace = os.fsync, Path.replace

    def settled(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        settle(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", settled)
    monkeypatch.setattr(Path, "replace", renamed)
    with whole(tmp_path / "student") as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_text("")
    assert done == ["weights", "student.unfinished", "renamed", tmp_path.name]


KILLED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from distill.whole import whole
for number in range(10**6):
    with whole(Path(sys.argv[1])) as unfinished:
        unfinished.write_text(f"{number} " * 10**4)
    print(flush=True)
"""


def test_a_killed_process_leaves_no_half_of_a_file(tmp_path: Path):
    path = tmp_path / "file"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        words = path.read_text().split()
        assert len(words) == 10**4 and len(set(words)) == 1


def test_of_two_runs_given_one_directory_one_goes_on(small: Compose):
    first, second = RunDirectory(small()), RunDirectory(small("seed=1"))
    first.create()
    before = (first.path / "config.yaml").read_text()
    with pytest.raises(UserError, match="another run is writing to it"):
        second.create()
    first.release()
    with pytest.raises(UserError, match="already holds a run"):
        second.create()
    assert (first.path / "config.yaml").read_text() == before
