"""A domain → its texts: embedded, local, or from the hub."""

import errno
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, IterableDataset

from distill.config import Domain
from distill.data import sources, stdlib
from distill.data.sources import load
from distill.errors import UserError

from .conftest import write


def rows(texts) -> list[str]:
    assert list(texts.features) == ["text"]
    return [row["text"] for row in texts]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An embedded corpus of four lines; the list grows by each reading of it."""
    read: list[str] = []

    def documents(part: str) -> dict[str, list[str]]:
        read.append(part)
        return {side: [f"{part} {side} {i}" for i in range(2)] for side in ("train", "validation")}

    monkeypatch.setattr(stdlib, "documents", documents)
    return read


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Dataset]:
    """A hub that holds these splits of every data set."""
    splits = {"train": Dataset.from_dict({"body": ["a", "b"], "n": [1, 2]})}

    def load_dataset(path: str, name: str | None, split: str, streaming: bool):
        assert (path, name) == ("someone/texts", "small")
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split].to_iterable_dataset() if streaming else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


@pytest.mark.parametrize("streaming", [False, True])
def test_the_embedded_corpus_has_both_sides_and_is_read_once(embedded: list[str], streaming: bool):
    for _ in range(2):
        splits = load(Domain("python", "prose"), streaming)
        assert rows(splits.train) == ["prose train 0", "prose train 1"]
        assert rows(splits.validation) == ["prose validation 0", "prose validation 1"]
        assert isinstance(splits.train, IterableDataset) == streaming
    assert embedded == ["prose", "prose"]


def test_an_embedded_part_that_changed_is_read_again(embedded: list[str], monkeypatch: pytest.MonkeyPatch):
    load(Domain("python", "code"), False)
    monkeypatch.setattr(stdlib, "fingerprint", lambda: "another")
    load(Domain("python", "code"), False)
    assert len(embedded) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_local_files_with_and_without_validation(tmp_path: Path, embedded: list[str], streaming: bool):
    first, second = write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.txt", "three")
    splits = load(Domain(first), streaming)
    assert rows(splits.train) == ["one\ntwo\n"] and splits.validation is None
    splits = load(Domain(first, validation=second), streaming)
    assert rows(splits.validation) == ["three"]
    assert isinstance(splits.train, IterableDataset) == streaming
    splits = load(Domain("python", "code", validation=second), streaming)
    assert rows(splits.train)[0] == "code train 0" and rows(splits.validation) == ["three"]


def test_a_folder_holds_a_document_per_file_in_order_without_hidden_ones(tmp_path: Path):
    for name in ("b.txt", "a/c.md", "a/.hidden", ".git/config", "empty.txt", "rows.jsonl"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "texts" / name, name if name != "empty.txt" else "")
    write(tmp_path / "texts" / "rows.jsonl", '{"text": "x"}\n{"text": "y"}\n')
    assert rows(load(Domain(str(tmp_path / "texts")), False).train) == ["a/c.md", "b.txt", "x", "y"]


def test_a_file_that_changed_is_read_again(tmp_path: Path):
    path = write(tmp_path / "a.txt", "one")
    load(Domain(path), False)
    write(tmp_path / "a.txt", "another")
    assert rows(load(Domain(path), False).train) == ["another"]


def test_a_home_folder_and_a_relative_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "text", "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert rows(load(Domain("~/text"), False).train) == rows(load(Domain("text"), False).train) == ["mine"]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_gives_the_column_and_its_validation_split(hub: dict[str, Dataset], tmp_path: Path, streaming: bool):
    domain = Domain("someone/texts", "small", column="body")
    splits = load(domain, streaming)
    assert rows(splits.train) == ["a", "b"] and splits.validation is None
    hub["validation"] = Dataset.from_dict({"body": ["c"]})
    hub["test"] = Dataset.from_dict({"body": ["d"]})
    assert rows(load(domain, streaming).validation) == ["c"]
    domain.validation = "test"
    assert rows(load(domain, streaming).validation) == ["d"]
    domain.validation, domain.column, domain.split = write(tmp_path / "v.txt", "e"), "body", "test"
    splits = load(domain, streaming)
    assert (rows(splits.train), rows(splits.validation)) == (["d"], ["e"])


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Domain("python"), "data.name=None is no part of data.path=python: give code or prose"),
        (Domain("python", "talk"), "data.name=talk is no part"),
        (Domain("./nothing"), "data.path=nothing does not exist: give a file, a folder or a hub data set"),
        (Domain("nothing.txt"), r"data.path=nothing\.txt does not exist"),
        (Domain("nothing.jsonl.xz"), r"data.path=nothing\.jsonl\.xz does not exist"),
        (Domain("/no/thing"), "data.path=/no/thing does not exist"),
        (Domain("deep/down/nothing"), "data.path=deep/down/nothing does not exist"),
        (Domain("python", "code", validation="none.txt"), r"data.validation=none\.txt does not exist"),
        (Domain("someone/texts", "small"), "someone/texts has no column text: set `column` to one of body, n"),
        (Domain("someone/texts", "small", split="dev"), 'data.path=someone/texts: Unknown split "dev"'),
        (Domain("someone/texts", "small", column="body", validation="dev"), 'Unknown split "dev"'),
    ],
)
def test_what_does_not_exist_is_named(embedded, hub, tmp_path: Path, monkeypatch, domain: Domain, message: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(domain, False)


def test_an_empty_folder_and_a_file_without_text_are_named(tmp_path: Path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none is an empty folder"):
        load(Domain(str(tmp_path / "none")), False)
    with pytest.raises(UserError, match=r"blank\.txt holds no text"):
        load(Domain(write(tmp_path / "blank.txt", "\n")), False)


def test_a_hub_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.path=someone/else could not be reached.*local file or folder") as raised:
        load(Domain("someone/else"), False)
    assert "\n" not in str(raised.value)


def test_a_name_like_those_of_the_hub_is_not_taken_for_a_file():
    assert not any(map(sources.is_local, ("wikitext", "Salesforce/wikitext", "HuggingFaceFW/fineweb-2.1")))


@pytest.mark.parametrize("streaming", [False, True])
def test_lines_of_one_text_are_put_together(hub: dict[str, Dataset], streaming: bool):
    hub["train"] = Dataset.from_dict({"text": ["", " = A title = \n", "", "A line.\n", "Another.\n"]})
    found = sources.load(Domain("someone/texts", name="small"), streaming).train
    assert [row["text"] for row in found] == [" = A title = \nA line.\nAnother.\n"]


@pytest.mark.parametrize("streaming", [False, True])
def test_one_row_without_a_line_break_makes_all_of_them_documents(hub: dict[str, Dataset], streaming: bool):
    hub["train"] = Dataset.from_dict({"text": ["A line.\n", "A document."]})
    found = sources.load(Domain("someone/texts", name="small"), streaming).train
    assert [row["text"] for row in found] == ["A line.\n", "A document."]


def test_a_cache_that_cannot_be_written_is_named(embedded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(part: str) -> dict[str, list[str]]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stdlib, "documents", full)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'cache'}'")):
        load(Domain("python", "prose"), streaming=False)
