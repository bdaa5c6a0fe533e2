"""Environments that a student can come to: which packages there are, and nothing else."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

#: Where `make oldest` has put the oldest release of transformers that students are for, with what it needs.
OLDEST = Path(sys.prefix) / "oldest"
#: Runs a file with the folders given, and Python's own library, for all there is to import.
ALONE = "import os, runpy, sys; _, path, *sys.argv = sys.argv; sys.path[:0] = path.split(os.pathsep); \
runpy.run_path(sys.argv[0], run_name='__main__')"


def answered(path: list[Path] | None, ids: Tensor, folders: list[Path]) -> dict[str, Any]:
    """What exported students say in a process of their own, with the packages of `path`; None: with the tests'."""
    home = folders[0].parent
    torch.save(ids, home / "prompts.pt")
    python = [] if path is None else ["-I", "-S", "-c", ALONE, ":".join(map(str, path))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "HF_"))}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("answer.py")
    command = [sys.executable, *python, str(script), "prompts.pt", "answers.pt", *map(str, folders)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(home / "answers.pt")
    return found


def linked(folder: Path, *wanted: str) -> Path:
    """A folder with these packages of the tests' own environment, and all that they need."""
    folder.mkdir()
    waiting, done = list(wanted), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            # Needed by those who have another system, or ask for more.
            continue
        for part in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / part).exists():
                (folder / part).symlink_to(Path(str(found.locate_file(part))))
        needs = map(Requirement, found.requires or [])
        waiting += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder


def newest(home: Path) -> tuple[list[Path], str]:
    return [linked(home / "newest", "torch", "transformers")], version("transformers")


def oldest(home: Path) -> tuple[list[Path], str]:
    if not (OLDEST / "transformers").exists():
        pytest.fail(f"{OLDEST} has no transformers: `make oldest` installs them")
    (found,) = distributions(name="transformers", path=[str(OLDEST)])
    return [OLDEST, linked(home / "torch", "torch")], found.version


def ours(home: Path) -> tuple[None, str]:
    return None, version("transformers")


#: By what distinguishes them: where packages are, and the release of transformers.
ENVIRONMENTS = {"oldest transformers": oldest, "newest transformers": newest, "beside distill": ours}
