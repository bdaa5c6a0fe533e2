"""Answers that share a batch are those that each would get alone."""

import threading
from typing import Any

import pytest
import torch
from flexformer.test_generation import SEEDS
from flexformer.tiny import KINDS, student, tokens

from distill.flexformer.cache import FlexformerCache
from distill.flexformer.model import FlexformerForCausalLM
from distill.serve.batch import Batch, Row
from distill.serve.choice import Wanted
from distill.serve.prefixes import Prefixes

ROOM = 2**20


class Listener:
    """In a stream's place: keeps the tokens, and cancels after as many as it is told."""

    def __init__(self, enough: int | None = None):
        self.tokens: list[int] = []
        self.cancelled, self.enough, self.error = False, enough, None
        self.ended = threading.Event()

    def hear(self, token: int) -> bool:
        self.tokens.append(token)
        self.cancelled = len(self.tokens) == self.enough
        return True

    def end(self, error: Exception | None = None) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> FlexformerForCausalLM:
    return student(request.param, seed=SEEDS[request.param])


def row(prompt: list[int], new: int, enough: int | None = None, **wanted: Any) -> Row:
    listener: Any = Listener(enough)
    return Row(prompt, Wanted(new, **wanted), listener)


def answered(model: FlexformerForCausalLM, rows: list[Row], prefixes: Prefixes | None = None, slots: int = 8) -> Batch:
    batch = Batch(model, prefixes or Prefixes(ROOM), slots, chunk=4)
    for each in rows:
        batch.submit(each)
    batch.start()
    for each in rows:
        assert each.stream.ended.wait(60)
    batch.stop()
    return batch


def alone(model: FlexformerForCausalLM, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_each_row_is_what_it_is_alone(model: FlexformerForCausalLM, slots: int):
    """Of many lengths, joining and leaving at different times, more of them than there are slots."""
    prompts = [tokens(1, 1 + (5 * i) % 10, seed=i)[0].tolist() for i in range(7)]
    rows = [row(prompt, 2 + 3 * i % 13) for i, prompt in enumerate(prompts)]
    answered(model, rows, slots=slots)
    for prompt, each in zip(prompts, rows, strict=True):
        assert each.stream.tokens == alone(model, prompt, each.wanted.max_new_tokens)


def test_what_was_read_before_is_not_read_again(model: FlexformerForCausalLM):
    """A second turn: the first prompt, its answer, and more; and another prompt that begins like the first."""
    prefixes, prompt = Prefixes(ROOM), tokens(1, 10)[0].tolist()
    first = row(prompt, 6)
    answered(model, [first], prefixes)
    second, other = row([*prompt, *first.stream.tokens, 7, 8], 5), row([*prompt[:9], 9, 9], 5)
    batch = answered(model, [second, other], prefixes)
    for each in (second, other):
        assert each.stream.tokens == alone(model, each.prompt, 5)
    # 10 + 5 of the first, whose last token was said and not read; 9 of the other, all that it shares.
    assert batch.reused == (15 + 9 if batch.joins else 0)


def test_the_same_prompt_again_is_read_no_more(model: FlexformerForCausalLM):
    prefixes, prompt = Prefixes(ROOM), tokens(1, 11)[0].tolist()
    for turn in range(3):
        again = row(prompt, 6)
        batch = answered(model, [again], prefixes)
        assert again.stream.tokens == alone(model, prompt, 6)
        assert batch.reused == (10 if turn and batch.joins else 0)


def test_a_kept_state_is_not_changed_by_those_who_go_on_from_it(model: FlexformerForCausalLM):
    prefixes, prompt = Prefixes(ROOM), tokens(1, 9)[0].tolist()
    rows = [row([*prompt, 3], 4) for _ in range(3)]
    for each in rows:
        answered(model, [each], prefixes)
    assert rows[0].stream.tokens == rows[1].stream.tokens == rows[2].stream.tokens == alone(model, [*prompt, 3], 4)


def test_one_leaves_early_and_the_others_go_on(model: FlexformerForCausalLM):
    leaving, staying = row([1, 2, 3], 50, enough=2), row([4, 5], 20)
    answered(model, [leaving, staying])
    assert len(leaving.stream.tokens) == 2 and staying.stream.tokens == alone(model, [4, 5], 20)


def test_one_fails_and_the_others_go_on():
    model = student("llama", seed=2)
    failing, staying = row([1, 2, 3], 20), row([4, 5], 20)

    def fail(logits: torch.Tensor) -> int:
        if len(failing.stream.tokens) == 3:
            raise RuntimeError("no token")
        return int(logits.argmax())

    failing.choice = fail  # type: ignore[assignment]
    answered(model, [failing, staying])
    assert str(failing.stream.error) == "no token" and staying.stream.tokens == alone(model, [4, 5], 20)


def test_a_step_fails_and_the_next_request_is_answered(monkeypatch: pytest.MonkeyPatch):
    model = student("llama", seed=2)
    forward, calls = Batch._forward, []

    def once(self: Batch, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return forward(self, *given)

    monkeypatch.setattr(Batch, "_forward", once)
    rows = [row([1, 2], 5), row([3, 4], 5)]
    batch = Batch(model, Prefixes(ROOM), 1, chunk=4)
    for each in rows:
        batch.submit(each)
    batch.start()
    assert all(each.stream.ended.wait(60) for each in rows)
    batch.stop()
    assert str(rows[0].stream.error) == "out of memory" and rows[1].stream.tokens == alone(model, [3, 4], 5)


def test_one_that_cannot_join_ends_and_the_next_is_answered(monkeypatch: pytest.MonkeyPatch):
    model = student("llama", seed=2)

    def full(states: list[FlexformerCache]) -> FlexformerCache:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr("distill.serve.batch.joined", full)
    rows = [row([1, 2], 30), row([3, 4], 5), row([5, 6], 5)]
    answered(model, rows, slots=2)
    assert str(rows[1].stream.error) == "out of memory"
    for each in (rows[0], rows[2]):
        assert each.stream.error is None
        assert each.stream.tokens == alone(model, each.prompt, each.wanted.max_new_tokens)


def test_who_is_not_answered_when_it_stops_is_told():
    batch = Batch(student("llama"), Prefixes(ROOM), 1, chunk=4)
    rows = [row([1, 2], 10**6), row([3], 2)]
    for each in rows:
        batch.submit(each)
    batch.start()
    batch.stop()
    assert [str(each.stream.error) for each in rows] == ["the server was stopped"] * 2


def test_who_hung_up_waits_no_more():
    """And holds no place that somebody else could have."""
    batch = Batch(student("llama"), Prefixes(ROOM), 1, chunk=4)
    rows = [row([1, 2], 10**6), *(row([3], 2) for _ in range(3))]
    for each in rows:
        batch.submit(each)
    assert batch.beyond == 3
    rows[1].stream.cancelled = rows[2].stream.cancelled = True
    assert batch.beyond == 1
    batch.start()
    assert all(each.stream.ended.wait(60) for each in rows[1:3]) and list(batch.waiting) == [rows[3]]
    batch.stop()
    assert [str(each.stream.error) for each in (rows[0], rows[3])] == ["the server was stopped"] * 2


def test_nobody_waits_for_a_batch_that_has_stopped():
    batch, late = Batch(student("llama"), Prefixes(ROOM), 1, chunk=4), row([3], 2)
    batch.stop()
    batch.stop()
    batch.submit(late)
    assert str(late.stream.error) == "the server was stopped"


def test_draws_with_a_seed_are_the_same_in_any_company(model: FlexformerForCausalLM):
    def said(company: int) -> list[int]:
        rows = [row([5, 6, 7], 12, temperature=1.0, seed=3), *(row([i + 1], 9) for i in range(company))]
        answered(model, rows)
        return rows[0].stream.tokens

    assert said(0) == said(4)
