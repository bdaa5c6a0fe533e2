"""The decoding thread: all answers grow by a token at a time, as rows of one batch.

Rows of softmax need their keys and values padded or paged to stand together; a state has one size, so a row joins when
its prompt is read and leaves when its answer ends, whatever the others do.
"""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..flexformer.cache import CACHE, FlexformerCache
from ..flexformer.model import FlexformerForCausalLM
from ..states import empty, fixed_size, joined, rows
from .choice import Choice, Wanted
from .prefixes import Prefixes
from .stream import Stream

#: What whoever is not answered is told.
STOPPED = "the server was stopped"


@dataclass(eq=False)
class Row:
    """A request on its way: its tokens, prompt and answer, of which the first `read` are in its state."""

    prompt: list[int]
    wanted: Wanted
    stream: Stream
    read: int = 0
    state: FlexformerCache | None = None
    error: Exception | None = None
    choice: Choice = field(init=False)

    def __post_init__(self) -> None:
        self.choice = Choice(self.wanted)

    @property
    def seen(self) -> list[int]:
        """The tokens in its state."""
        return (self.prompt + self.stream.tokens)[: self.read]

    @property
    def next(self) -> int:
        """The token that is read next."""
        beyond = self.read - len(self.prompt)
        return self.prompt[self.read] if beyond < 0 else self.stream.tokens[beyond]

    def hear(self, logits: Tensor) -> bool:
        """Takes the next token; whether another is wanted."""
        if self.stream.cancelled:
            return False
        try:
            more = self.stream.hear(self.choice(logits))
        except Exception as error:
            # Of this answer alone: the others in the batch go on.
            self.error = error
            return False
        return more and len(self.stream.tokens) < self.wanted.max_new_tokens

    def end(self) -> None:
        self.stream.end(self.error)


class Batch:
    """At most `slots` answers at a time; others wait. Prompts are read `chunk` tokens between two steps of decoding.

    States are kept before the last token of a prompt, at multiples of `chunk` inside it, and where an answer ends.
    """

    def __init__(self, model: FlexformerForCausalLM, prefixes: Prefixes, slots: int, chunk: int):
        self.model, self.prefixes, self.chunk = model, prefixes, chunk
        self.joins = fixed_size(model.new_cache())
        self.slots = slots if self.joins else 1
        self.empty = empty(model, 1) if self.joins else model.new_cache()
        self.waiting: deque[Row] = deque()
        self.reading: deque[Row] = deque()
        self.decoding: list[Row] = []
        self.state: FlexformerCache | None = None
        self.reused = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """After the step at hand; whoever is not answered yet is told so."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        with self._changed:
            left = [*self.decoding, *self.reading, *self.waiting]
            self.decoding, self.reading, self.waiting = [], deque(), deque()
        for row in left:
            row.stream.end(RuntimeError(STOPPED))

    def submit(self, row: Row) -> None:
        with self._changed:
            if not self._stopped:
                self.waiting.append(row)
                self._changed.notify()
                return
        row.stream.end(RuntimeError(STOPPED))

    @property
    def beyond(self) -> int:
        """How many requests somebody waits for that there is no slot for."""
        with self._changed:
            wanted = sum(not row.stream.cancelled for row in [*self.waiting, *self.reading, *self.decoding])
        return max(0, wanted - self.slots)

    @property
    def load(self) -> dict[str, int]:
        return {
            "waiting": len(self.waiting),
            "reading": len(self.reading),
            "decoding": len(self.decoding),
            "kept_states": len(self.prefixes.states),
            "kept_bytes": self.prefixes.held,
            "reused_tokens": self.reused,
        }

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self.waiting or self.reading or self.decoding)
                if self._stopped:
                    return
                gone = [row for row in [*self.waiting, *self.reading] if row.stream.cancelled]
                self.waiting, self.reading = (
                    deque(row for row in line if row not in gone) for line in (self.waiting, self.reading)
                )
                while self.waiting and len(self.reading) + len(self.decoding) < self.slots:
                    self.reading.append(self.waiting.popleft())
            for row in gone:
                row.end()
            if self.reading:
                self._attempt([self.reading[0]], self._read)
            if self.decoding:
                self._attempt(self.decoding, self._step)

    def _attempt(self, concerned: list[Row], step: Any) -> None:
        """A step; where it fails, the answers concerned end with the error, and others go on."""
        try:
            with torch.inference_mode():
                step()
        except Exception as error:
            if concerned is self.decoding:
                self.decoding, self.state = [], None
            # One whose prompt was read may have left already, and failed to join the others.
            self.reading = deque(row for row in self.reading if row not in concerned)
            for row in concerned:
                row.stream.end(error)

    def _read(self) -> None:
        """The next chunk of the prompt that came first; the last of its tokens is the first that is read as an answer's
        are, with those of others, and is asked what comes after it."""
        row = self.reading[0]
        if row.state is None:
            row.read, row.state = self._known(row.prompt)
        end = len(row.prompt) - 1
        if row.read < end:
            until = min(end, (row.read // self.chunk + 1) * self.chunk)
            _, row.state = self._forward([row.prompt[row.read : until]], [row.read], row.state)
            row.read = until
            self._keep(row, row.state)
        if row.read < end:
            return
        self.reading.popleft()
        self.state = row.state if self.state is None else joined([self.state, row.state])
        row.state = None
        self.decoding.append(row)

    def _known(self, prompt: list[int]) -> tuple[int, FlexformerCache]:
        if not self.joins:
            return 0, self.model.new_cache()
        read, state = self.prefixes.longest(prompt)
        self.reused += read
        # The layers of a state count tokens in place: a kept one must not.
        return read, rows(self.empty if state is None else state, [0])

    def _keep(self, row: Row, state: FlexformerCache, index: int = 0) -> None:
        if self.joins:
            self.prefixes.keep(row.seen, rows(state, [index]))

    def _step(self) -> None:
        """One more token for every answer; those that end leave the batch."""
        assert self.state is not None
        tokens, at = [[row.next] for row in self.decoding], [row.read for row in self.decoding]
        logits, self.state = self._forward(tokens, at, self.state)
        going = []
        for index, row in enumerate(self.decoding):
            row.read += 1
            if row.hear(logits[index]):
                going.append(index)
            else:
                self._keep(row, self.state, index)
                row.end()
        if len(going) < len(self.decoding):
            self.state = rows(self.state, going) if going else None
            self.decoding = [self.decoding[index] for index in going]

    def _forward(
        self, tokens: list[list[int]], at: list[int], state: FlexformerCache
    ) -> tuple[Tensor, FlexformerCache]:
        """Logits (B, V) after the last of the new tokens, on the CPU, and the state; `at` is where each row stands."""
        ids = torch.tensor(tokens, device=self.model.device)
        places = torch.tensor(at, device=ids.device)[:, None] + torch.arange(ids.shape[1], device=ids.device)
        out = self.model(input_ids=ids, position_ids=places, cache=state, use_cache=True, logits_to_keep=1)
        assert out.logits is not None
        return out.logits[:, -1].float().cpu(), getattr(out, CACHE)
