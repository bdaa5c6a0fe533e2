"""Texts with a label each: tables, the hub, what labels are called, and the batches that come of them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PreTrainedTokenizerFast

from distill.config import Domain
from distill.data import labelled, prepare
from distill.data.sources import Splits
from distill.errors import UserError
from distill.task import TASKS

from .conftest import byte_level, counting, data, write

NLI = ["entailment", "neutral", "contradiction"]
CLASSIFIER = TASKS["sequence_classification"]
ROWS = [{"text": f"line {i} of the text", "label": "odd" if i % 2 else "even", "n": i} for i in range(40)]


def saved(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """The rows as a table of the kind that the path's extension says."""
    table, kind = Dataset.from_list(rows), "".join(path.suffixes)
    if kind == ".parquet":
        table.to_parquet(path)
    elif kind in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")
    else:
        table.to_json(path, compression="infer")
    return str(path)


@pytest.fixture
def padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that can fill up, and tells the texts of a pair apart."""
    made = byte_level(counting(0, 200))
    made.pad_token = "<end>"
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.xz"])
def test_every_kind_of_table(kind: str, tmp_path: Path):
    rows = labelled.load(Domain(saved(tmp_path / f"rows{kind}"))).train
    found = sorted((row["text"], row["label"]) for row in rows)
    assert found == sorted((row["text"], row["label"]) for row in ROWS)
    assert list(rows["text"]) != [row["text"] for row in ROWS]


def test_columns_go_by_the_names_given(tmp_path: Path):
    path = saved(tmp_path / "rows.jsonl", [{"a": "one", "b": "two", "c": 1}, {"a": None, "b": "two", "c": 0}])
    rows = labelled.load(Domain(path, column="a", pair="b", label="c")).train
    assert list(rows) == [{"text": "one", "label": 1, "pair": "two"}]


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Domain("python"), "data.path=python has no such rows"),
        (Domain("nowhere.jsonl"), r"data.path=nowhere.jsonl does not exist: give a file"),
        (Domain("HERE/rows.txt"), r"rows.txt is no table: give a file of rows, .jsonl, .json, .parquet, .csv"),
        (Domain("HERE"), "is no table"),
        (Domain("HERE/torn.jsonl"), r"torn.jsonl cannot be read: "),
        (
            Domain("HERE/rows.jsonl", column="body"),
            "has no column body: set data.domains.NAME.column to one of text, label, n",
        ),
        (
            Domain("HERE/rows.jsonl", label="class"),
            "has no column class: set data.domains.NAME.label to one of text, label, n",
        ),
        (
            Domain("HERE/rows.jsonl", pair="other"),
            "has no column other: set data.domains.NAME.pair to one of text, label, n",
        ),
        (Domain("HERE/rows.jsonl", validation="gone.csv"), "data.validation=gone.csv does not exist"),
        (Domain("HERE/empty.jsonl"), "has no row with text and label"),
    ],
)
def test_what_cannot_be_used_is_named(domain: Domain, message: str, tmp_path: Path):
    saved(tmp_path / "rows.jsonl")
    write(tmp_path / "rows.txt", "text")
    write(tmp_path / "torn.jsonl", '{"text": "a", "label')
    write(tmp_path / "empty.jsonl", json.dumps({"text": None, "label": 1}))
    domain.path = domain.path.replace("HERE", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        labelled.load(domain)
    assert "\n" not in str(error.value)


def test_the_hub_is_asked_for_its_validation_split(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(path: str, name: str | None, split: str, streaming: bool):
        asked.append((path, name, split))
        if split not in ("train", "validation", "valid"):
            raise ValueError(f'Unknown split "{split}"')
        return Dataset.from_list(ROWS[:4] if split == "train" else ROWS[4:6])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = labelled.load(Domain("nyu-mll/glue", "rte"))
    assert splits.validation is not None and (len(splits.train), len(splits.validation)) == (4, 2)
    assert labelled.load(Domain("nyu-mll/glue", "rte", validation="valid")).validation is not None
    assert {each[:2] for each in asked} == {("nyu-mll/glue", "rte")} and asked[-1][2] == "valid"
    with pytest.raises(UserError, match=r'data\.path=nyu-mll/glue: Unknown split "nope"'):
        labelled.load(Domain("nyu-mll/glue", "rte", split="nope"))


def table(labels: list[Any], names: list[str] | None = None) -> Dataset:
    kind = ClassLabel(names=names) if names else Value("string" if isinstance(labels[0], str) else "int64")
    rows = {"text": [f"line {i}" for i in range(len(labels))], "label": labels}
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": kind}))


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (table(["no", "yes", "no"]), ["no", "yes"]),
        (table([3, 1, 1]), ["1", "3"]),
        (table([0, 1, 1], names=NLI), NLI),
    ],
)
def test_classes_are_called_as_the_rows_call_them(rows: Dataset, names: list[str]):
    found = labelled.labels([Splits(rows, None)], None)
    assert found.names == names and sorted(found.numbers.values()) == list(range(len(names)))


@pytest.mark.parametrize(
    ("rows", "names", "numbers"),
    [
        (table(["no", "yes", "no"]), ["Yes", "No"], [1, 0, 1]),
        (table(["a", "A", "a"]), ["A", "a"], [1, 0, 1]),
        (table([0, 1, 2], names=NLI), [name.upper() for name in reversed(NLI)], [2, 1, 0]),
        (table([0, 1, 1], names=["a", "b"]), ["LABEL_0", "LABEL_1"], [0, 1, 1]),
        (table([1, 0, 1]), ["negative", "positive"], [1, 0, 1]),
        (table(["1", "0", "1"]), ["negative", "positive"], [1, 0, 1]),
        # Stars, of which the fewest are number 0: not every number is a name.
        (table([0, 1, 2]), ["1", "2", "3"], [0, 1, 2]),
        (table([1, 2, 3]), ["1", "2", "3"], [0, 1, 2]),
    ],
)
def test_labels_go_by_name_where_all_have_one(rows: Dataset, names: list[str], numbers: list[int], padding):
    found = labelled.labels([Splits(rows, None)], names)
    assert found.names == names
    assert labelled.encode(rows, padding, 8, found.numbers, "x")["labels"][:].tolist() == numbers


def test_one_numbering_for_all_rows(capsys: pytest.CaptureFixture[str]):
    """A split in which every number happens to be a name does not go by names while others cannot."""
    found = labelled.labels([Splits(table([0, 1, 2]), table([1, 2]))], ["1", "2", "3"])
    assert found.numbers == {0: 0, 1: 1, 2: 2}
    assert capsys.readouterr().err == "labels go by number: 0 is 1, 1 is 2, 2 is 3\n"


def test_f1_is_of_the_rows_own_1():
    rows = Splits(table([0, 1], names=["different", "equivalent"]), None)
    assert labelled.labels([rows], ["equivalent", "different"]).positive == 0
    assert labelled.labels([rows], None).positive == 1
    assert labelled.labels([Splits(table(["no", "yes"]), None)], ["yes", "no"]).positive == 1


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (table([0, -1]), ["no", "yes"], r"labels 0, -1, and the teacher's classes are 0 to 1 \(no, yes\)"),
        (table([0, 2]), ["no", "yes"], "the rows have the labels 0, 2, and"),
        (table(["a", "no"]), ["no", "yes"], "labels a, no, and the teacher has no, yes: call them alike"),
        (table([0, 1], names=["entailment", "not_entailment"]), NLI, "the teacher has entailment, neutral"),
        (table(["b", "a"]), ["LABEL_0", "LABEL_1"], "the rows have the labels"),
        (table([1, 1]), None, "the labels of the rows are 1: a classifier needs two"),
    ],
)  # fmt: skip
def test_labels_of_no_class_are_refused(rows: Dataset, names: list[str] | None, message: str):
    with pytest.raises(UserError, match=message):
        labelled.labels([Splits(rows, None)], names)


def test_what_is_no_label_is_left_out_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unlabelled = table([0, -1, 1], names=["no", "yes"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: unlabelled)
    assert sorted(labelled.load(Domain("someone/rows")).train["label"][:]) == [0, 1]
    for value, message in ((0.5, "holds numbers and no classes"), ([1], "holds lists, and a text has one label")):
        rows = [{"text": "a", "label": value}, {"text": "b", "label": value}]
        with pytest.raises(UserError, match=message):
            labelled.load(Domain(saved(tmp_path / "rows.parquet", rows)))
    with pytest.raises(UserError, match=r"column text holds no text, but Value\('int64'\)"):
        labelled.load(Domain(saved(tmp_path / "rows.jsonl", [{"text": 1, "label": 0}])))


def test_words_that_look_like_nothing_are_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.csv").write_text("text,label\nNA,None\nnull,spam\n,spam\n")
    rows = labelled.load(Domain(str(tmp_path / "rows.csv"))).train
    assert sorted((row["text"], row["label"]) for row in rows) == [("NA", "None"), ("null", "spam")]
    assert "rows.csv: 1 of 3 rows lack one of text, label" in capsys.readouterr().err
    (tmp_path / "rows.tsv").write_text('text\tlabel\nhe said "no\t0\nand "yes\t1\n')
    assert len(labelled.load(Domain(str(tmp_path / "rows.tsv"))).train) == 2


def test_other_numbers_are_other_labels(padding: PreTrainedTokenizerFast):
    """Nothing old comes from the cache: not for other labels, another end of long texts, or another tokenizer."""
    rows = table(["no", "yes", "no"])
    each = [labelled.encode(rows, padding, 2, {"no": i, "yes": 1 - i}, "x") for i in (0, 1)]
    assert [one["labels"][:].tolist() for one in each] == [[0, 1, 0], [1, 0, 1]]
    padding.truncation_side = "left"
    left = labelled.encode(rows, padding, 2, {"no": 0, "yes": 1}, "x")
    assert left[0]["input_ids"].tolist() != each[0][0]["input_ids"].tolist()


def test_rows_are_read_as_the_tokenizer_reads_them(padding: PreTrainedTokenizerFast):
    """Its own special tokens and token types; cut at the context."""
    rows = Dataset.from_list(
        [{"text": "line 1", "pair": "text", "label": 1}, {"text": "line " * 9, "pair": "of", "label": 0}]
    )
    encoded = labelled.encode(rows, padding, 8, {0: 0, 1: 1}, "x")
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "labels"}
    assert encoded[0]["input_ids"].tolist() == padding("line 1", "text")["input_ids"]
    assert len(encoded[1]["input_ids"]) == 8
    padding.model_input_names = ["input_ids", "attention_mask"]
    assert "token_type_ids" not in labelled.encode(rows, padding, 8, {0: 0, 1: 1}, "x").column_names


def test_batches_are_as_long_as_their_longest_text(tmp_path: Path, padding: PreTrainedTokenizerFast):
    corpus = prepare(data(path=saved(tmp_path / "rows.jsonl"), context=12), padding, 0, CLASSIFIER)
    assert corpus.classes == ["even", "odd"]
    (batch,) = corpus.batches(1, 16, seed=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape and ids.shape[1] <= 12 and batch["labels"].shape == (16,)
    assert mask.sum(1).max() == ids.shape[1] and (mask.sum(1) < ids.shape[1]).any()
    for row, real, label in zip(ids, mask != 0, batch["labels"], strict=True):
        text = padding.decode(row[real], skip_special_tokens=True)
        assert int(text.split()[1]) % 2 == label


def test_a_part_is_held_out_of_every_label(tmp_path: Path, padding: PreTrainedTokenizerFast):
    """Although the rows come label by label."""
    rows = [{"text": f"line {i}", "label": i // 50} for i in range(100)]
    corpus = prepare(data(path=saved(tmp_path / "rows.jsonl", rows), validation_blocks=99), padding, 0, CLASSIFIER)
    held_out, train = corpus.validation["rows"], corpus.train["rows"]
    assert (len(held_out), len(train)) == (5, 95) and held_out["labels"][:].unique().tolist() == [0, 1]
    texts = [{tuple(row.tolist()) for row in part["input_ids"]} for part in (held_out, train)]
    assert not texts[0] & texts[1]


def test_a_teachers_names_decide(tmp_path: Path, padding: PreTrainedTokenizerFast):
    corpus = prepare(data(path=saved(tmp_path / "rows.jsonl")), padding, 0, CLASSIFIER, ["odd", "even"])
    rows = corpus.train["rows"]
    odd = [int(padding.decode(row, skip_special_tokens=True).split()[1]) % 2 for row in rows["input_ids"]]
    assert corpus.classes == ["odd", "even"] and torch.equal(rows["labels"][:], 1 - torch.tensor(odd))


def test_labelled_texts_are_no_stream(tmp_path: Path, padding: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match=r"data\.streaming=true: rows of a table are read whole"):
        prepare(data(path=saved(tmp_path / "rows.jsonl"), streaming=True), padding, 0, CLASSIFIER)
