"""Text from tokens, and where it stops."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel

from distill.serve.stream import Stops, Stream

LETTERS = st.text("ab\n", max_size=30)


@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_however_it_is_cut(text: str, stops: list[str], data: st.DataObject):
    """The slow reference: look through what has been written after every piece."""
    read, told, held = Stops(tuple(stops)), "", ""
    rest = text
    while rest and not read.found:
        size = data.draw(st.integers(1, len(rest)))
        held, rest = held + rest[:size], rest[size:]
        told += read.feed(held[-size:])
        assert held.startswith(told)
    seen = text[: len(text) - len(rest)]
    found = [seen.index(stop) for stop in stops if stop in seen]
    assert read.found == bool(found)
    assert told + read.held == seen[: min(found, default=None)]
    # Nothing is held back that cannot begin a stop.
    assert not read.held or any(stop.startswith(read.held) for stop in stops)


async def written(tokens: list[int], tokenizer: Any, stops: tuple[str, ...] = (), ends: frozenset[int] = frozenset()):
    stream = Stream(tokenizer, stops, ends)
    more = []
    for token in tokens:
        more.append(stream.hear(token))
        if not more[-1]:
            break
    stream.end()
    items = []
    while (item := await stream.queue.get()) is not None:
        items.append(item)
    return items, more, stream


def test_a_first_word_keeps_its_space():
    """Some tokenizers have none before the first word of a text, which an answer that goes on with one is not."""
    words = Tokenizer(WordLevel({"▁Hello": 0, "▁world": 1}))
    words.decoder = Metaspace()

    async def said(before: list[int]) -> list[str]:
        stream = Stream(SimpleNamespace(backend_tokenizer=words), (), frozenset(), before=before)
        stream.hear(1)
        stream.end()
        return [await stream.queue.get() for _ in range(2)]

    assert asyncio.run(said([0])) == [" world", None] and asyncio.run(said([])) == ["world", None]


def test_a_call_that_breaks_off_ends_its_answer_alone(tokenizer: Any):
    class Broken:
        initial_events = ()

        def feed(self, text: str) -> list[Any]:
            return []

        def finalize(self) -> Any:
            raise KeyError("arguments")

    async def ended() -> Any:
        stream = Stream(tokenizer, (), frozenset(), Broken())
        stream.hear(5)
        stream.end()
        return [await asyncio.wait_for(stream.queue.get(), 10) for _ in range(2)]

    told, end = asyncio.run(ended())
    assert "arguments" in told.msg and end is None


def test_the_pieces_are_the_text(tokenizer: Any):
    text = 'def naïve(x):\n    return "日本語 ✓"\n'
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    items, more, stream = asyncio.run(written(tokens, tokenizer))
    assert "".join(items) == text and all(more) and stream.total_tokens == len(tokens)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(items)


def test_a_stop_is_no_part_of_the_answer_and_ends_it(tokenizer: Any):
    tokens = tokenizer("one two three four", add_special_tokens=False).input_ids
    items, more, stream = asyncio.run(written(tokens, tokenizer, (" thr",)))
    assert "".join(items) == "one two" and more[-1] is False and stream.total_tokens == len(more)


def test_what_could_have_become_a_stop_is_told_at_the_end(tokenizer: Any):
    tokens = tokenizer("one two", add_special_tokens=False).input_ids
    assert "".join(asyncio.run(written(tokens, tokenizer, ("two three",)))[0]) == "one two"


@pytest.mark.parametrize("after", [0, 2])
def test_the_end_of_a_text_ends_it_and_is_not_told(tokenizer: Any, after: int):
    tokens = [*tokenizer("one two", add_special_tokens=False).input_ids[:after], tokenizer.eos_token_id]
    items, more, stream = asyncio.run(written(tokens, tokenizer, ends=frozenset([tokenizer.eos_token_id])))
    assert "".join(items) == tokenizer.decode(tokens[:-1]) and more == [True] * after + [False]
    assert stream.total_tokens == len(tokens)


def test_nobody_listens(tokenizer: Any):
    async def cancelled() -> bool:
        stream = Stream(tokenizer, (), frozenset())
        stream.cancel()
        return stream.hear(5)

    assert asyncio.run(cancelled()) is False
