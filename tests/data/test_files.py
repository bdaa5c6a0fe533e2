"""Local files of every kind → documents."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from distill.data import files
from distill.errors import UserError

TEXT = "One.\n\nTwo: äß.\n"


def read(*paths: Path, column: str = "text") -> list[str]:
    return [row["text"] for row in files.documents(tuple(map(str, paths)), column)]


@pytest.mark.parametrize(("suffix", "opened"), [("", open), (".xz", lzma.open), (".gz", gzip.open), (".bz2", bz2.open)])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str, suffix: str, opened):
    path = tmp_path / (name + suffix)
    with opened(path, "wb") as file:
        file.write(TEXT.encode())
    assert read(path) == [TEXT]


def test_rows_of_json_are_documents_and_empty_ones_are_none(tmp_path: Path):
    rows = [{"body": "a\nb", "n": 1}, {"body": None}, {"body": " "}, {"body": "c"}]
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
        assert read(tmp_path / name, column="body") == ["a\nb", "c"]


def test_rows_of_parquet_are_documents(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", None, "b"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="body") == ["a", "b"]
    with pytest.raises(UserError, match=r"a\.parquet has no column text: set `column` to one of body, n"):
        read(tmp_path / "a.parquet")


def test_files_follow_each_other_and_an_empty_one_among_them_is_left_out(tmp_path: Path):
    paths = [tmp_path / name for name in ("b.txt", "a.txt", "c.txt")]
    for path, text in zip(paths, ("1", "", "3"), strict=True):
        path.write_text(text)
    assert read(*paths) == ["1", "3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", r"a\.txt holds no text"),
        ("a.txt", b"\xff\xfe\x80", r"a\.txt is not UTF-8 text: convert it"),
        ("a.txt", b"a\0b", r"a\.txt is not text: it holds NUL bytes"),
        ("a.txt.xz", b"no archive", r"a\.txt\.xz cannot be read: "),
        ("a.txt.gz", gzip.compress(b"whole", mtime=0)[:-6], r"a\.txt\.gz cannot be read: "),
        ("a.jsonl", b'{"text": 1}', r"a\.jsonl: column text holds int, not text"),
        ("a.jsonl", b'{"body": "x", "n": 1}', r"a\.jsonl has no column text: set `column` to one of body, n"),
        ("a.jsonl", b'"text"', r"a\.jsonl has no column text: set `column` to one of \(none\)"),
        ("a.jsonl", b'{"text": "x"}\n{', r"a\.jsonl is not JSON: "),
        ("a.json", b"[1", r"a\.json is not JSON: "),
        ("a.parquet", b"no table", r"a\.parquet is not a Parquet file"),
    ],
)
def test_what_is_no_text_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path / name)
    assert "\n" not in str(raised.value)
