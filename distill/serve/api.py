"""What may be asked: the fields of OpenAI's completions and chat completions that are answered, and their bounds.

A field that would change the answer and cannot be honoured is refused, not ignored.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from transformers import GenerationConfig

from .choice import Wanted


class Refused(Exception):
    """An error that the API tells in its own form."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Asked(BaseModel):
    """What both kinds of request may say. A field set to what it is by default changes nothing, and is taken."""

    model_config = ConfigDict(extra="forbid")
    #: Tokens of an answer that may get as long as it likes; fewer where there is no room for so many.
    usual: ClassVar[int]

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    # Told with the last chunk of every stream, wanted or not.
    stream_options: dict[str, Any] | None = None
    n: Literal[1] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def longest(self) -> int | None:
        """How many tokens the answer may have, where that is said."""
        return self.max_tokens

    def plain(self) -> dict[str, Any]:
        """As transformers' handlers read it: without what is null, and as it was understood."""
        return self.model_dump(exclude_none=True)

    def wanted(self, defaults: GenerationConfig) -> Wanted:
        """defaults: the student's own, where the request is silent."""
        sampled = 1.0 if defaults.do_sample else 0.0
        asked = self.temperature if self.temperature is not None else (defaults.temperature or 1.0) * sampled
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        own = self.top_p if self.top_p is not None else defaults.top_p if defaults.do_sample else None
        return Wanted(
            max_new_tokens=self.longest or self.usual,
            temperature=asked,
            top_p=1.0 if own is None else own,
            top_k=(defaults.top_k or 0) if defaults.do_sample else 0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            stop=tuple(stop for stop in stops if stop),
            seed=self.seed,
        )


class Completion(Asked):
    """POST /v1/completions."""

    usual = 16

    prompt: str

    @property
    def texts(self) -> list[str]:
        """What its prompt is made of."""
        return [self.prompt]

    suffix: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None


class Part(BaseModel):
    """Of a message in parts; a student reads text alone."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """Other fields are taken, and not written into the prompt."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @field_validator("tool_calls")
    @classmethod
    def none_is_none(cls, calls: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """An empty list says no more than none: handlers drop the content of a message that has one."""
        return calls or None


class Chat(Asked):
    """POST /v1/chat/completions."""

    usual = 1024

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def texts(self) -> list[str]:
        contents = [each.content or "" for each in self.messages]
        return [part for each in contents for part in ([each] if isinstance(each, str) else [one.text for one in each])]


Kind = TypeVar("Kind", bound=Asked)


def understood(kind: type[Kind], body: Any) -> Kind:
    """The request, or Refused with the field that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        message = f"{field}: unknown, or nothing this server can do" if unknown else f"{field}: {first['msg']}"
        raise Refused(400, message if field else first["msg"], param=field or None) from error
