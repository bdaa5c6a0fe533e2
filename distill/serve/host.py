"""transformers' own server, with a batch of states where it calls `generate`.

Its handlers turn messages into prompts and answers into the API's form, streamed or whole, tool calls included. Its
routes are left out: they load any model that is asked for and drop those that others are using.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import Modality, _StreamError

from .api import Asked, Chat, Completion, Refused, understood
from .batch import Batch, Row
from .choice import Wanted
from .stream import Stream


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
        self, model: Any, tokenizer: Any, inputs: Any, wanted: Wanted, request_id: str, response_parser: Any = None
    ) -> tuple[asyncio.Queue[Any], Stream]:
        stream = Stream(self.tokenizer, wanted.stop, self.ends, response_parser)
        self.batch.submit(Row(self.bounded(inputs, wanted), wanted, stream))
        return stream.queue, stream

    async def generate_non_streaming(
        self, model: Any, tokenizer: Any, inputs: Any, wanted: Wanted, request_id: str
    ) -> tuple[str, int, list[int]]:
        queue, stream = self.generate_streaming(model, tokenizer, inputs, wanted, request_id)
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

    def bounded(self, inputs: Any, wanted: Wanted) -> list[int]:
        """The prompt's tokens; Refused where it is empty, too long, or one too many."""
        prompt: list[int] = inputs["input_ids"][0].tolist()
        if not prompt:
            raise Refused(400, "the prompt is empty: it needs one token at least", param="prompt")
        if len(prompt) + wanted.max_new_tokens > self.longest:
            raise Refused(
                400,
                f"at most {self.longest:,} tokens are read and written; the prompt has {len(prompt):,}, and "
                f"{wanted.max_new_tokens:,} are asked for",
                "context_length_exceeded",
            )
        for param, tokens in (("prompt", prompt), ("logit_bias", wanted.logit_bias)):
            # A tokenizer may know more than its model, and a step is of the whole batch.
            if beyond := [token for token in tokens if not 0 <= token < self.model.config.vocab_size]:
                raise Refused(400, f"{param}: the student has no token {beyond[0]}", param=param)
        if len(self.batch.waiting) >= self.waiting:
            raise Refused(429, f"{self.waiting:,} requests are waiting; try again later", "rate_limit_exceeded")
        return prompt


class Narrowed:
    """What both handlers do in their own way here: which model, what may be asked, and how it is written."""

    kind: type[Asked]
    generation_state: Any

    def _validate_request(self, body: dict[str, Any]) -> None:
        asked = understood(self.kind, body)
        if asked.model != self.generation_state.name:
            raise Refused(
                404,
                f"there is no model {asked.model!r} here; {self.generation_state.name!r} is",
                "model_not_found",
                "model",
            )

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        served = self.generation_state
        return served.name, served.model, served.tokenizer

    def _build_generation_config(self, body: dict[str, Any], defaults: Any, use_cb: bool = False) -> Any:
        return understood(self.kind, body).wanted(defaults)


class Completions(Narrowed, CompletionHandler):
    """POST /v1/completions."""

    kind = Completion


class Chats(Narrowed, ChatCompletionHandler):
    """POST /v1/chat/completions."""

    kind = Chat

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        if body.get("tools") and "tools" not in str(self.generation_state.tokenizer.chat_template):
            raise Refused(400, "tools: the chat template has no place for them; leave them out", param="tools")
