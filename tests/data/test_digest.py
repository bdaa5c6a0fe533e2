"""What tells whether a text is what it was: every number of it, and nothing else."""

from dataclasses import replace
from typing import Any

from datasets import Dataset, Features, List, Value

from distill.config import Domain
from distill.data import Corpus
from distill.data.digest import digests

ROWS: dict[str, list[Any]] = {
    "input_ids": [[1, 2], [3, 4], [5, 6]],
    "text": ["a", "b", "c"],
    "of_words": [[1], [], [2, 3]],
}
TYPES = {"text": Value("large_string"), "of_words": List(Value("int64"))}


def corpus(rows: dict[str, list[Any]] = ROWS, **columns: Any) -> Corpus:
    features = Features({"input_ids": List(Value("int32"), length=2)} | TYPES)
    blocks = Dataset.from_dict(rows | columns, features)
    held_out = blocks.select([0])
    return Corpus({"one": Domain("x")}, {"one": blocks}, {"one": held_out}, {"one": 1.0}, seed=0, workers=0)


def test_any_number_or_word_counts():
    found = digests(corpus())
    assert found == digests(corpus()) and found.keys() == {"one"}
    others: list[dict[str, list[Any]]] = [
        {"input_ids": [[1, 2], [3, 4], [5, 7]]},
        {"text": ["a", "bc", ""]},
        {"of_words": [[1], [2], [3]]},
        {"of_words": [[1], [], [2, 4]]},
    ]
    assert len({digests(corpus(**each))["one"] for each in others} | {found["one"]}) == len(others) + 1


def test_what_a_selection_leaves_out_does_not():
    whole = corpus()
    rows = {name: values[:2] for name, values in ROWS.items()}
    some = replace(whole, train={"one": whole.train["one"].select(range(2))})
    assert digests(some) == digests(corpus(rows))
    turned = replace(whole, train={"one": whole.train["one"].select([1, 0, 2])})
    assert digests(turned) != digests(whole)
    assert digests(replace(whole, train={})) != digests(whole)


def test_nothing_is_told_of_streams():
    whole = corpus()
    assert digests(replace(whole, train={"one": whole.train["one"].to_iterable_dataset()})) == {}
