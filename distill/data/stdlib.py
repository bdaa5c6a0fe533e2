"""The embedded corpus: the text that every Python carries, so that a run needs neither network nor files.

`code` is the standard library's sources without their docstrings, `prose` those docstrings and the language
reference of `pydoc`: two domains of one subject.
"""

import ast
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

PARTS = ("code", "prose")

#: Of a hundred documents, about this many are kept for validation.
VALIDATION_PERCENT = 6
#: Not the library itself: what was installed, its tests, tables of characters, grammars of old Pythons.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "lib2to3", "__pycache__"}
TOPICS = "pydoc_data/topics.py"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents(part: str) -> dict[str, list[str]]:
    """The documents of `code` or `prose`, ordered by name: {"train": […], "validation": […]}.

    A document's side is fixed by a hash of its file's name, so a file's code and docstrings are on the same one.
    """
    sides: dict[str, list[str]] = {"train": [], "validation": []}
    for name, text in sorted(_corpus()[part].items()):
        sides[_side(name)].append(text)
    return sides


def fingerprint() -> str:
    """A hash of the Python version, the library's files and this file: of all that `documents` depends on."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), *sources().values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def sources() -> dict[str, Path]:
    """The source files by their POSIX path below the library's folder, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root).as_posix(): path for path in _python_files(root)}
    return dict(sorted(found.items()))


def split_docstrings(source: str) -> tuple[str, str]:
    """A module's source as (the code without docstrings, the docstrings cleaned and joined by blank lines).

    Raises SyntaxError or ValueError where `source` is not this Python's.
    """
    documented = (node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented) and node.body)
    with_text = ((node.body[0], ast.get_docstring(node, clean=False)) for node in documented)
    found = sorted(((node, text) for node, text in with_text if text is not None), key=lambda pair: pair[0].lineno)
    prose = (inspect.cleandoc(text) for _, text in found)
    return _without(source, [node for node, _ in found]), "\n\n".join(text for text in prose if text)


@functools.cache
def _corpus() -> dict[str, dict[str, str]]:
    """part → name → text: both parts at once, because either costs the same parsing."""
    code: dict[str, str] = {}
    prose: dict[str, str] = {f"{TOPICS}:{name}": text for name, text in topics.items()}
    for name, path in sources().items():
        try:
            with tokenize.open(path) as file:
                code[name], prose[name] = split_docstrings(file.read())
        except (SyntaxError, ValueError):
            continue
    parts = {"code": code, "prose": prose}
    return {part: {name: text for name, text in of.items() if text.strip()} for part, of in parts.items()}


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED]
        # _sysconfigdata is written by each build: it would make two machines' corpora differ.
        names = (name for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        yield from (path for path in map(Path(folder).joinpath, names) if path != root / TOPICS)


def _side(name: str) -> str:
    percentile = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "validation" if percentile < VALIDATION_PERCENT else "train"


def _without(source: str, docstrings: list[ast.stmt]) -> str:
    """Cuts the statements out, last first, with the lines that this leaves blank."""
    # ast counts columns in bytes.
    lines = [line.encode() for line in source.split("\n")]
    for node in reversed(docstrings):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        rest = lines[first][: node.col_offset] + lines[last][node.end_col_offset :]
        lines[first : last + 1] = [rest] if rest.strip() else []
        after_blank = first == 0 or not lines[first - 1].strip()
        while not rest.strip() and after_blank and first < len(lines) and not lines[first].strip():
            del lines[first]
    return b"\n".join(lines).decode()
