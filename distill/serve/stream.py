"""The answer to one request, from tokens in the decoding thread to text in the server's event loop."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.cli.serving.utils import _StreamError, response_events_to_chunks


class Stops:
    """Text up to the first of some stop strings; what could be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops, self.held, self.found = stops, "", False

    def feed(self, text: str) -> str:
        """What can be told now."""
        self.held += text
        if at := [self.held.index(stop) for stop in self.stops if stop in self.held]:
            self.found = True
            told, self.held = self.held[: min(at)], ""
            return told
        keep = max((begun(self.held, stop) for stop in self.stops), default=0)
        told, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return told


def begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` `stop` may have begun with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Stream:
    """What transformers' handlers read an answer from: a queue of texts that None ends, and the count of tokens.

    parser: transformers' own, which tells tool calls and reasoning from text; None where a model has no template for
    them. before: the last tokens of the text that the answer goes on with. complete: whether it ended by itself.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: tuple[str, ...],
        ends: frozenset[int],
        parser: Any = None,
        before: Sequence[int] = (),
    ):
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.tokens: list[int] = []
        self.cancelled = self.complete = False
        self._tokenizer, self._ends, self._parser, self._stops = tokenizer.backend_tokenizer, ends, parser, Stops(stops)
        self._decoded = DecodeStream(list(before), skip_special_tokens=parser is None)
        if parser is not None:
            self._tell(response_events_to_chunks(parser.initial_events))

    @property
    def total_tokens(self) -> int:
        return len(self.tokens)

    def hear(self, token: int) -> bool:
        """Takes the next token; whether another is wanted. In the decoding thread, as `end`."""
        self.tokens.append(token)
        text = self._decoded.step(self._tokenizer, token)
        if text:
            self._read(self._stops.feed(text))
        self.complete = self._stops.found or token in self._ends
        return not (self.cancelled or self.complete)

    def end(self, error: Exception | None = None) -> None:
        """No token follows."""
        if error is None:
            try:
                self._read(self._stops.held)
                self._tell(self._finished())
            except Exception as broken:
                # What the parser cannot read is an error of this answer, and not of the batch that it stands in.
                error = broken
        if error is not None:
            # The handlers put the message between quotes as it is.
            self._tell([_StreamError(json.dumps(str(error))[1:-1])])
        self._tell([None])

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.cancelled = True

    def _read(self, text: str) -> None:
        if text:
            self._tell([text] if self._parser is None else response_events_to_chunks(self._parser.feed(text)))

    def _finished(self) -> list[Any]:
        if self._parser is None:
            return []
        try:
            return response_events_to_chunks(self._parser.finalize()[1])
        except (ValueError, RuntimeError):
            # The answer ended inside a tool call.
            return []

    def _tell(self, items: list[Any]) -> None:
        def put() -> None:
            for item in items:
                self.queue.put_nowait(item)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(put)
