"""Pairs of passages: every passage in one pair, side by side in the text, shown in their order and swapped."""

from pathlib import Path

from datasets import Dataset

from distill.config import Domain
from distill.data import labelled, order

from .conftest import write


def story(sentences: int) -> str:
    return " ".join(
        f"Then number {i} came in, looked around for a while, and sat down somewhere." for i in range(sentences)
    )


def numbers(passage: str) -> list[int]:
    return [int(word) for word in passage.split() if word.isdigit()]


def test_pairs_are_neighbours_in_their_order_and_swapped():
    rows = list(order.pairs(Dataset.from_dict({"text": [story(300)]})))
    seen = []
    for two in zip(rows[::2], rows[1::2], strict=True):
        swapped, row = sorted(two, key=lambda row: row["label"])
        first, second = numbers(row["text"]), numbers(row["pair"])
        assert second == list(range(first[-1] + 1, first[-1] + 1 + len(second)))
        assert [order.LABELS[each["label"]] for each in (swapped, row)] == ["swapped", "in order"]
        assert (swapped["text"], swapped["pair"]) == (row["pair"], row["text"])
        seen += first + second
    # An odd passage at the end has no neighbour.
    assert seen == list(range(len(seen))) and len(seen) >= 296
    assert all(min(len(row["text"]), len(row["pair"])) >= order.PASSAGE for row in rows[:-2])


def test_every_so_many_rows_have_both_labels():
    texts = {"text": [story(4000)]}
    labels = order.pairs(Dataset.from_dict(texts))["label"][:]
    assert all(0.4 < sum(labels[::step]) / len(labels[::step]) < 0.6 for step in (1, 2, 4, 10))
    assert order.pairs(Dataset.from_dict(texts))["label"][:] == labels


def test_no_pair_reaches_over_two_texts():
    rows = order.pairs(Dataset.from_dict({"text": ["Short.", story(9), "", "Also short."]}))
    assert all("hort" not in row["text"] + row["pair"] for row in rows) and len(rows) >= 1


def test_a_domain_of_plain_text_can_be_a_task(tmp_path: Path):
    splits = labelled.load(Domain(write(tmp_path / "a.txt", story(50)), order=True))
    assert splits.validation is None and labelled.labels([splits], None).names == ["swapped", "in order"]
    both = labelled.load(Domain(str(tmp_path / "a.txt"), validation=write(tmp_path / "b.txt", story(20)), order=True))
    assert both.validation is not None and 0 < len(both.validation) < len(both.train)
