"""Texts that belong together: rows of a table, or neighbours in plain text."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from distill.config import Domain
from distill.data import pairs, prepare
from distill.errors import UserError
from distill.task import TASKS, tokens_of

from .conftest import byte_level, counting, data, write
from .test_order import numbers, story

EMBEDDING = TASKS["embedding"]


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [{"query": f"line {i}", "answer": f"the text of line {i}"} for i in range(40)] + [{"query": "x"}]
    return write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))


@pytest.fixture
def padding() -> PreTrainedTokenizerFast:
    made = byte_level(counting(0, 200))
    made.pad_token = "<end>"
    return made


def test_rows_of_a_table(table: str, capsys: pytest.CaptureFixture[str]):
    rows = pairs.load(Domain(table, column="query", pair="answer")).train
    assert sorted(rows["text"]) == sorted(f"line {i}" for i in range(40))
    assert all(row["pair"] == f"the text of {row['text']}" for row in rows)
    assert "1 of 41 rows lack one of query, answer" in capsys.readouterr().err


def test_neighbours_in_plain_text(tmp_path: Path):
    """As they stand, each passage once."""
    rows = pairs.load(Domain(write(tmp_path / "story.txt", story(300)))).train
    seen = [number for row in rows for key in ("text", "pair") for number in numbers(row[key])]
    assert seen == list(range(len(seen))) and len(seen) >= 296


def test_texts_that_are_too_short_are_refused(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"lines\.txt has no text of two passages, [^\n]*: set data\.domains\.NAME\.pair [^\n]*$"
    ):
        pairs.load(Domain(write(tmp_path / "lines.txt", "One line.\n")))


def test_a_table_without_partners_is_no_text(tmp_path: Path):
    with pytest.raises(UserError, match=r"rows\.csv is a table: set data\.domains\.NAME\.pair to the column"):
        pairs.load(Domain(write(tmp_path / "rows.csv", "ask,answer\n" + "One. Two.,Three. Four.\n" * 99)))


def test_a_batch_is_texts_and_then_their_partners(table: str, padding: PreTrainedTokenizerFast):
    domain = Domain(table, column="query", pair="answer")
    corpus = prepare(data({"rows": domain}, context=6, validation_blocks=2), padding, 0, EMBEDDING)
    assert corpus.classes is None and set(corpus.train) == {"rows"}
    batch = next(iter(corpus.evaluation("rows", 2)))
    assert batch.keys() == {"input_ids", "attention_mask"} and batch["input_ids"].shape == (4, 6)
    said = padding.batch_decode(batch["input_ids"], skip_special_tokens=True)
    # Both are cut at the context, the mark of the beginning included.
    wanted = [
        padding.decode(padding(f"the text of {each}")["input_ids"][:6], skip_special_tokens=True) for each in said[:2]
    ]
    assert all(each.startswith("line ") for each in said[:2]) and said[2:] == wanted
    assert tokens_of(batch) == int(batch["attention_mask"].sum()) and (batch["input_ids"][:, 0] == 0).all()
    again = prepare(data({"rows": domain}, context=6, validation_blocks=2), padding, 0, EMBEDDING)
    assert torch.equal(batch["input_ids"], next(iter(again.evaluation("rows", 2)))["input_ids"])


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        (
            {"order": True},
            "embedding",
            r"^data\.domains\.rows\.order is for task=sequence_classification; leave it out$",
        ),
        (
            {"pair": "answer"},
            "masked_lm",
            r"rows\.pair is for task=sequence_classification or embedding; leave it out$",
        ),
        ({"messages": "answer"}, "embedding", r"rows\.messages: conversations are for task=causal_lm"),
        ({"column": "nope", "pair": "answer"}, "embedding", r"has no column nope: set data\.domains\.NAME\.column to"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, object], task: str, message: str, table: str, padding: PreTrainedTokenizerFast
):
    with pytest.raises(UserError, match=message):
        prepare(data({"rows": Domain(table, **changes)}), padding, 0, TASKS[task])  # type: ignore[arg-type]


def test_a_text_is_no_partner_of_its_own(table: str):
    with pytest.raises(
        UserError, match=r"data\.domains\.NAME\.column and data\.domains\.NAME\.pair are both query; give"
    ):
        pairs.load(Domain(table, column="query", pair="query"))


def test_a_context_has_tokens_of_its_own(table: str, padding: PreTrainedTokenizerFast):
    domain = Domain(table, column="query", pair="answer")
    widths = [
        next(iter(prepare(data({"rows": domain}, context=context), padding, 0, EMBEDDING).evaluation("rows", 4)))
        for context in (6, 4)
    ]
    assert [batch["input_ids"].shape[1] for batch in widths] == [6, 4]


def test_pairs_are_not_streamed(table: str, padding: PreTrainedTokenizerFast):
    domain = Domain(table, column="query", pair="answer")
    with pytest.raises(UserError, match=r"^data\.streaming=true: rows of a table are read whole"):
        prepare(data({"rows": domain}, streaming=True), padding, 0, EMBEDDING)
