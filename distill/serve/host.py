"""transformers' own server, with a batch of states where it calls `generate`.

Its handlers turn messages into prompts and answers into the API's form, streamed or whole, tool calls included. Its
routes are left out: they load any model that is asked for and drop those that others are using.
"""

import asyncio
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from starlette.responses import JSONResponse, StreamingResponse
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import Modality, _StreamError, get_response_template

from .api import Asked, Chat, Completion, Refused, understood
from .batch import Batch, Row
from .choice import Wanted
from .stream import Stream

#: The last tokens of a prompt that its completion is read after: some tokenizers have no space before a first word.
BEFORE = 4
#: What writes messages as a prompt; a request may give its template values, and not another template.
TEMPLATING = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


@dataclass
class Asking:
    """What handlers take for a configuration of generation, of one request.

    least: tokens that there must be room for. goes_on: whether its answer goes on with the text of the prompt.
    """

    wanted: Wanted
    least: int
    goes_on: bool
    stream: Stream | None = None

    @property
    def max_new_tokens(self) -> int | None:
        """Where an answer has so many tokens, handlers say that it was cut: None where it ended by itself."""
        return None if self.stream is not None and self.stream.complete else self.wanted.max_new_tokens


@dataclass(frozen=True)
class Served:
    """The one model there is, and what bounds a request. longest: of prompt and answer together."""

    name: str
    model: Any
    tokenizer: Any
    batch: Batch
    longest: int
    waiting: int

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        given = self.model.generation_config.eos_token_id
        given = self.tokenizer.eos_token_id if given is None else given
        return frozenset() if given is None else frozenset([given] if isinstance(given, int) else given)

    @cached_property
    def characters(self) -> int:
        """No longer prompt can be read: so many may the most tokens have."""
        return self.longest * max(map(len, self.tokenizer.get_vocab()))

    # What the handlers ask transformers' model manager.
    def get_model_modality(self, *args: Any, **kwargs: Any) -> Modality:
        return Modality.LLM

    # What they ask its state of generation.
    def use_continuous_batching(self, *args: Any) -> bool:
        return False

    def get_manager(self, *args: Any, **kwargs: Any) -> "Served":
        return self

    # What they ask its manager of generation.
    def generate_streaming(
        self, model: Any, tokenizer: Any, inputs: Any, asking: Asking, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue[Any], Stream]:
        prompt = self.bounded(inputs, asking)
        before = prompt[-BEFORE:] if asking.goes_on else ()
        stream = Stream(self.tokenizer, asking.wanted.stop, self.ends, response_parser, before)
        asking.stream = stream
        self.batch.submit(Row(prompt, asking.wanted, stream))
        return stream.queue, stream

    async def generate_non_streaming(
        self, model: Any, tokenizer: Any, inputs: Any, asking: Asking, request_id: str
    ) -> tuple[str, int, list[int]]:
        queue, stream = self.generate_streaming(model, tokenizer, inputs, asking, request_id)
        told: list[str] = []
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, _StreamError):
                    raise Refused(500, f"the answer failed: {item.msg}")
                told.append(item)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return "".join(told), inputs["input_ids"].shape[-1], stream.tokens

    def bounded(self, inputs: Any, asking: Asking) -> list[int]:
        """The prompt's tokens; Refused where it is empty, too long, or one too many. An answer that may get as long as
        it likes gets no longer than there is room for."""
        prompt: list[int] = inputs["input_ids"][0].tolist()
        if not prompt:
            raise Refused(400, "the prompt is empty: it needs one token at least", param="prompt")
        room = self.longest - len(prompt)
        if room < asking.least:
            raise Refused(
                400,
                f"at most {self.longest:,} tokens are read and written; the prompt has {len(prompt):,}, and "
                f"{asking.least:,} are asked for",
                "context_length_exceeded",
            )
        asking.wanted = replace(asking.wanted, max_new_tokens=min(asking.wanted.max_new_tokens, room))
        for param, tokens in (("prompt", prompt), ("logit_bias", asking.wanted.logit_bias)):
            # A tokenizer may know more than its model, and a step is of the whole batch.
            if beyond := [token for token in tokens if not 0 <= token < self.model.config.vocab_size]:
                raise Refused(400, f"{param}: the student has no token {beyond[0]}", param=param)
        if self.batch.beyond >= self.waiting:
            raise Refused(429, f"{self.waiting:,} requests are waiting; try again later", "rate_limit_exceeded")
        return prompt


class Narrowed:
    """What both handlers do in their own way here: which model, what may be asked, and how it is written."""

    kind: type[Asked]
    generation_state: Any

    async def handle_request(self, body: dict[str, Any], request_id: str) -> StreamingResponse | JSONResponse:
        asked = understood(self.kind, body)
        self.check(asked)
        try:
            # Answers that fail are Refused: what else is raised is so of the prompt.
            answer: StreamingResponse | JSONResponse = await super().handle_request(asked.plain(), request_id)  # type: ignore[misc]
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise Refused(400, f"no prompt can be made of this: {type(error).__name__}: {error}") from error
        return answer

    def check(self, asked: Any) -> None:
        """Refused where this student cannot answer it."""
        if asked.model != self.generation_state.name:
            raise Refused(
                404,
                f"there is no model {asked.model!r} here; {self.generation_state.name!r} is",
                "model_not_found",
                "model",
            )
        most = self.generation_state.characters
        if sum(map(len, asked.texts)) > most:
            raise Refused(400, f"a prompt has {most:,} characters at most", "context_length_exceeded")

    def _validate_request(self, body: dict[str, Any]) -> None:
        """It is understood already."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        served = self.generation_state
        return served.name, served.model, served.tokenizer

    def _build_generation_config(self, body: dict[str, Any], defaults: Any, use_cb: bool = False) -> Any:
        asked = understood(self.kind, body)
        return Asking(asked.wanted(defaults), asked.longest or 1, self.kind is Completion)


class Completions(Narrowed, CompletionHandler):
    """POST /v1/completions."""

    kind = Completion


class Chats(Narrowed, ChatCompletionHandler):
    """POST /v1/chat/completions."""

    kind = Chat

    def check(self, asked: Chat) -> None:
        super().check(asked)
        served = self.generation_state
        if asked.tools and "tools" not in str(served.tokenizer.chat_template):
            raise Refused(400, "tools: the chat template has no place for them; leave them out", param="tools")
        if asked.tools and get_response_template(served.tokenizer, served.model.lm) is None:
            raise Refused(
                400, "tools: this student's calls cannot be told from its answers; leave them out", param="tools"
            )
        for name in asked.chat_template_kwargs or {}:
            if name in TEMPLATING:
                field = f"chat_template_kwargs.{name}"
                raise Refused(400, f"{field}: the server decides over it; leave it out", param=field)
