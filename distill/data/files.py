"""A local file → its documents: plain text is one document, JSON and Parquet hold one per row."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..errors import UserError

#: How to open what is compressed; everything else is opened as it is.
OPEN: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def documents(paths: tuple[str, ...], column: str) -> Iterator[dict[str, str]]:
    """{"text": …} for each document of the files, in order; column: where rows of JSON and Parquet hold it.

    Raises UserError for a file that is not UTF-8 text, is damaged or lacks the column, and for no text at all.
    """
    empty = True
    for path in map(Path, paths):
        for text in READ.get(kind(path), _plain)(path, column):
            if text.strip():
                empty = False
                yield {"text": text}
    if empty:
        raise UserError(f"{paths[0]} holds no text" if len(paths) == 1 else f"none of the {len(paths)} files has text")


def kind(path: Path) -> str:
    """The extension below that of the compression: `.jsonl` of `a.jsonl.xz`."""
    return (path.with_suffix("") if path.suffix.lower() in OPEN else path).suffix.lower()


def _plain(path: Path, column: str) -> Iterator[str]:
    yield _decoded(path)


def _json(path: Path, column: str) -> Iterator[str]:
    """One object per line, or one array of objects."""
    content = _decoded(path)
    try:
        rows = json.loads(content) if content.lstrip().startswith("[") else _json_lines(content)
        yield from (_cell(row, column, path) for row in rows)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg}; give one object per line, or one array") from error


def _json_lines(content: str) -> Iterator[Any]:
    return (json.loads(line) for line in content.split("\n") if line.strip())


def _parquet(path: Path, column: str) -> Iterator[str]:
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: it is damaged or has the wrong extension") from error
    if column not in table.schema_arrow.names:
        raise _missing(path, column, table.schema_arrow.names)
    for batch in table.iter_batches(columns=[column]):
        yield from (_cell(row, column, path) for row in batch.to_pylist())


READ: dict[str, Callable[[Path, str], Iterator[str]]] = {".json": _json, ".jsonl": _json, ".parquet": _parquet}


def _decoded(path: Path) -> str:
    try:
        with OPEN.get(path.suffix.lower(), open)(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: convert it, or leave it out") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if "\0" in text:
        raise UserError(f"{path} is not text: it holds NUL bytes; convert it, or leave it out")
    return text


def _cell(row: Any, column: str, path: Path) -> str:
    """A row's text; one that is null counts as empty."""
    if not isinstance(row, dict) or column not in row:
        raise _missing(path, column, list(row) if isinstance(row, dict) else [])
    if not isinstance(row[column], str | None):
        raise UserError(f"{path}: column {column} holds {type(row[column]).__name__}, not text; give another one")
    return row[column] or ""


def _missing(path: Path, column: str, columns: list[str]) -> UserError:
    return UserError(f"{path} has no column {column}: set `column` to one of {', '.join(columns) or '(none)'}")
