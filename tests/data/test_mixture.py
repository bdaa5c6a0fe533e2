"""Several domains → batches."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset

from distill.config import Domain
from distill.data import domains as configured
from distill.data import prepare
from distill.data.sources import Splits
from distill.errors import UserError
from distill.task import DECODER

from .conftest import counting, data, write


@pytest.fixture
def domains(tmp_path: Path) -> dict[str, Domain]:
    """Two domains that no block can belong to both of."""
    return {
        "many": Domain(write(tmp_path / "many.txt", counting(0, 400)), weight=3.0),
        "few": Domain(write(tmp_path / "few.txt", "quick brown fox\n" * 60), weight=1.0),
    }


def read(loader) -> list[list[int]]:
    return [row for batch in loader for row in batch["input_ids"].tolist()]


def blocks(data_set) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in data_set]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_as_many_and_as_large_as_asked(tokenizer, domains, streaming: bool, workers: int):
    corpus = prepare(data(domains, streaming=streaming, workers=workers), tokenizer, 0)
    batches = list(corpus.batches(steps=13, batch_size=5, seed=1))
    assert [batch["input_ids"].shape for batch in batches] == [(5, 8)] * 13
    assert {batch["input_ids"].dtype for batch in batches} == {torch.int64}


def test_a_stream_of_several_shards_gives_whole_batches_too(tokenizer, monkeypatch: pytest.MonkeyPatch):
    shards = Dataset.from_dict({"text": [counting(i, i + 50) for i in range(0, 200, 50)]}).to_iterable_dataset(4)
    monkeypatch.setattr(configured, "load", lambda domain, streaming: Splits(shards, shards))
    corpus = prepare(data({"x": Domain("someone/texts")}, streaming=True, workers=2), tokenizer, 0)
    assert [len(batch["input_ids"]) for batch in corpus.batches(steps=3, batch_size=5, seed=1)] == [5, 5, 5]


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_are_fixed_by_the_seeds(tokenizer, domains, streaming: bool):
    config = data(domains, streaming=streaming)
    first = read(prepare(config, tokenizer, 0).batches(6, 4, seed=1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert read(prepare(config, tokenizer, 0).batches(6, 4, seed=1)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert read(prepare(config, tokenizer, 0).batches(6, 4, seed=2)) != first
    turns = [blocks(prepare(config, tokenizer, seed)._mixed.take(50)) for seed in (0, 1)]
    assert turns[0] != turns[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_domains_are_mixed_by_weight_whatever_their_size(tokenizer, domains, streaming: bool):
    corpus = prepare(data(domains, streaming=streaming), tokenizer, 0)
    few = {tuple(block) for block in blocks(corpus.train["few"])}
    drawn = [tuple(block) in few for block in read(corpus.batches(100, 20, seed=1))]
    assert corpus.weights == {"many": 0.75, "few": 0.25}
    # By size it would be 0.13.
    assert 0.2 < sum(drawn) / len(drawn) < 0.3


@pytest.mark.parametrize("streaming", [False, True])
def test_short_text_is_read_again_in_a_new_order(tokenizer, tmp_path: Path, streaming: bool):
    domain = Domain(write(tmp_path / "a.txt", counting(0, 40)))
    corpus = prepare(data({"a": domain}, streaming=streaming), tokenizer, 0)
    train = blocks(corpus.train["a"])
    drawn = read(corpus.batches(3, len(train), seed=1))
    assert {tuple(block) for block in drawn} <= {tuple(block) for block in train}
    first, second = drawn[: len(train)], drawn[len(train) : 2 * len(train)]
    assert first != second and first != train
    if not streaming:
        assert sorted(first) == sorted(second) == sorted(train)


def test_the_last_twentieth_of_the_blocks_is_held_out(tokenizer, tmp_path: Path):
    path = write(tmp_path / "a.txt", counting(0, 400))
    corpus = prepare(data(path=path, validation_blocks=10_000), tokenizer, 0)
    train, held_out = blocks(corpus.train["a"]), blocks(corpus.validation["a"])
    assert len(held_out) == int(0.05 * (len(train) + len(held_out))) > 1
    joined = tokenizer.decode([i for block in train + held_out for i in block])
    assert counting(0, 400).startswith(joined) and len(joined) > 0.99 * len(counting(0, 400))


def test_one_block_is_held_out_at_least_and_one_is_left(tokenizer, tmp_path: Path):
    corpus = prepare(data(path=write(tmp_path / "a.txt", counting(0, 3))), tokenizer, 0)
    assert len(corpus.train["a"]) >= 1 and len(corpus.validation["a"]) == 1
    context = len(tokenizer(counting(0, 3))["input_ids"])
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"domain a has no block of .* left to train on"):
            prepare(data(path=str(tmp_path / "a.txt"), context=context, streaming=streaming), tokenizer, 0)


def test_of_a_stream_the_first_blocks_are_held_out(tokenizer, tmp_path: Path):
    path = write(tmp_path / "a.txt", counting(0, 40))
    corpus = prepare(data(path=path, streaming=True), tokenizer, 0)
    assert isinstance(corpus.train["a"], IterableDataset)
    joined = [i for block in blocks(corpus.validation["a"]) + blocks(corpus.train["a"]) for i in block]
    assert len(corpus.validation["a"]) == 4
    assert counting(0, 40).startswith(tokenizer.decode(joined))


def test_validation_is_spread_over_the_text_and_read_in_order(tokenizer, tmp_path: Path):
    path, other = write(tmp_path / "a.txt", counting(0, 9)), write(tmp_path / "b.txt", counting(0, 90))
    corpus = prepare(data(path=path, validation=other), tokenizer, 0)
    everything = blocks(prepare(data(path=path, validation=other, validation_blocks=999), tokenizer, 0).validation["a"])
    n = len(everything)
    assert n > 40
    assert blocks(corpus.validation["a"]) == [everything[i] for i in (0, n // 4, n // 2, 3 * n // 4)]
    batches = list(corpus.evaluation("a", batch_size=3))
    assert [len(batch["input_ids"]) for batch in batches] == [3, 1]
    assert read(batches) == blocks(corpus.validation["a"])
    stream = prepare(data(path=path, validation=other, streaming=True), tokenizer, 0)
    assert blocks(stream.validation["a"]) == everything[:4]


@pytest.mark.parametrize(
    ("path", "name", "called"),
    [("python", "prose", "prose"), ("hub/wikitext-2.1", "raw", "wikitext-2.1"), ("/x/code.train.txt.xz", None, "code")],
)
def test_data_path_replaces_the_domains_by_one_of_a_short_name(path: str, name: str | None, called: str):
    config = data({"other": Domain("python", "code")}, path=path, name=name, validation="valid")
    assert configured._checked(config, DECODER) == {called: Domain(path, name=name, validation="valid")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domains": {}}, "data has no domain: give data.path, or an entry in data.domains"),
        (
            {"domains": {"x": Domain("python", "code", weight=-1.0)}},
            r"data\.domains\.x\.weight=-1\.0: give a positive",
        ),
        ({"domains": {"x": Domain("python", "code", weight=0.0)}}, r"data\.domains: every weight is 0"),
        ({"context": 1}, r"data\.context=1 .*at least 2"),
        ({"validation_blocks": 0}, r"data\.validation_blocks=0 .*at least 1"),
    ],
)
def test_what_cannot_be_is_named_before_anything_is_read(tokenizer, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        prepare(data(**{"domains": {"x": Domain("nowhere.txt")}, **change}), tokenizer, 0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("validation", [False, True])
def test_a_domain_of_no_weight_is_only_measured(tokenizer, domains, tmp_path: Path, streaming: bool, validation: bool):
    """On its validation text where it has some, else on all of it; no block of it is ever trained on."""
    other = write(tmp_path / "other.txt", "another text\n" * 40) if validation else None
    domains["few"] = Domain(domains["few"].path, validation=other, weight=0.0)
    corpus = prepare(data(domains, streaming=streaming, validation_blocks=50), tokenizer, 0)
    assert corpus.weights == {"many": 1.0} and corpus.train.keys() == {"many"}
    held_out = "".join(tokenizer.decode(block) for block in blocks(corpus.validation["few"]))
    counts = held_out.count("another text"), held_out.count("quick brown fox")
    assert counts[validation] == 0 and counts[not validation] > 5
    assert not any("quick" in tokenizer.decode(row) for row in read(corpus.batches(20, 10, seed=1)))
