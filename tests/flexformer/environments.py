"""Environments that a student can come to: which packages there are, and nothing else."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

#: Where `make older` has put the oldest release of transformers that students are for, with what it needs.
OLDER = Path(sys.prefix) / "older"
#: Runs a file with the folders given, and Python's own library, for all there is to import.
ALONE = "import os, runpy, sys; _, path, *sys.argv = sys.argv; sys.path[:0] = path.split(os.pathsep); \
runpy.run_path(sys.argv[0], run_name='__main__')"


def python(path: list[Path] | None) -> list[str]:
    """The beginning of a command that runs a file; None: where these tests run."""
    if path is None:
        return [sys.executable]
    return [sys.executable, "-I", "-S", "-c", ALONE, ":".join(map(str, path))]


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
    if not (OLDER / "transformers").exists():
        pytest.fail(f"{OLDER} has no transformers: `make older` installs them")
    return [OLDER, linked(home / "torch", "torch")], "5.0.0"


def ours(home: Path) -> tuple[None, str]:
    return None, version("transformers")


#: By what distinguishes them: where packages are, and the release of transformers.
ENVIRONMENTS = {"oldest transformers": oldest, "newest transformers": newest, "beside distill": ours}
