"""The frozen softmax teacher: loading it, finding its attention layers, and reading what goes into them."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import config
from .errors import UserError
from .flexformer.exact import is_causal
from .task import DECODER, Task, other_task

#: The teacher that the package carries.
POCKET = Path(__file__).parent / "pocket"
#: The teacher's attention: exactly SDPA, which also hands out what goes into it while someone captures.
CAPTURE = "distill_capture"
#: Extra arguments of an attention that is not plain causal softmax, and what they stand for.
UNSUPPORTED = {"sliding_window": "sliding windows", "softcap": "soft-capped logits", "s_aux": "attention sinks"}


class Heads(NamedTuple):
    """What enters one attention layer: q (B, H, N, D), k and v (B, K, N, D), after position encoding.

    causal: whether a token sees only those before it.
    """

    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    causal: bool = True


@dataclass
class Teacher:
    """A frozen PreTrainedModel, its tokenizer, and its attention layers as FlexformerConfig wants them.

    stored: the dtype of its weights on disk, whatever they were loaded as. Deliberately no nn.Module: a Lightning
    module that holds one would copy it into every checkpoint.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layers: list[dict[str, Any]]
    stored: torch.dtype
    task: Task = DECODER

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @torch.no_grad()
    def heads(self, input_ids: Tensor) -> list[Heads]:
        """Queries, keys and values of every layer, from one forward pass."""
        with capture() as captured:
            self.model.base_model(input_ids=input_ids, **self.task.arguments)
        return captured

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """(B, N, V)."""
        return self.model(input_ids=input_ids, **self.task.arguments).logits

    def weights_hash(self) -> str:
        """sha256 over names and contents of all weights, in the order of the state dictionary."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


_captured: ContextVar[list[Heads] | None] = ContextVar("captured", default=None)


@contextmanager
def capture() -> Iterator[list[Heads]]:
    """Collects the Heads of every attention layer that runs inside the block."""
    token = _captured.set([])
    try:
        yield _captured.get()  # type: ignore[misc]
    finally:
        _captured.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    captured = _captured.get()
    if captured is not None:
        for argument, meaning in UNSUPPORTED.items():
            if kwargs.get(argument) is not None:
                raise UserError(f"teacher.path: this teacher uses {meaning}, which linear attention cannot stand for")
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        captured.append(Heads(module, query, key, value, scaling, is_causal(module)))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)


AttentionInterface.register(CAPTURE, _attention)
AttentionMaskInterface.register(CAPTURE, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def load_teacher(wanted: config.Teacher, context: int, task: Task = DECODER) -> Teacher:
    """The teacher at teacher.path, frozen; UserError where it cannot be had or its attention cannot be swapped."""
    if wanted.path is None:
        raise UserError("teacher.path is missing: give a directory, a hub name, or pocket")
    path = str(POCKET) if wanted.path == "pocket" else wanted.path
    model_config = _from_hub(AutoConfig, path)
    check_context(model_config, context)
    if model_config.is_encoder_decoder:
        raise UserError(
            f"teacher.path={wanted.path}: encoder-decoder models cannot be swapped, only decoders and encoders"
        )
    check_family(f"teacher.path={wanted.path}", model_config.model_type, task)
    dtype = getattr(torch, wanted.dtype)
    model = _from_hub(task.auto, path, dtype=dtype, attn_implementation=CAPTURE)
    tokenizer = _from_hub(AutoTokenizer, path)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers makes an empty one where the files are missing.
        raise UserError(
            f"teacher.path={wanted.path} has no tokenizer: add its tokenizer.json and tokenizer_config.json"
        )
    for name in task.special_tokens:
        if getattr(tokenizer, name) is None:
            raise UserError(
                f"teacher.path={wanted.path}: its tokenizer has no {name}, which an {task.kind} needs; set it"
            )
    return freeze(wanted.path, model, tokenizer, model_config.dtype or torch.float32, task)


def freeze(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: torch.dtype,
    task: Task = DECODER,
) -> Teacher:
    """A Teacher around a model in memory; UserError if its attention cannot be swapped."""
    model.eval().requires_grad_(False)
    return Teacher(name, model, tokenizer, attention_layers(name, model, task), stored, task)


def attention_layers(name: str, model: PreTrainedModel, task: Task) -> list[dict[str, Any]]:
    """Where attention happens and in which shape, seen by running one token: no family needs code of its own."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with capture() as captured, torch.no_grad():
        model.base_model(input_ids=token, **task.arguments)
    if not captured:
        raise UserError(
            f"teacher.path={name}: {model.config.model_type} does not use transformers' attention interface, "
            "so its attention cannot be swapped"
        )
    check_direction(f"teacher.path={name}", model.config.model_type, [heads.module for heads in captured], task)
    # Encoders have no cache, and some of them no index of their layers.
    found = [getattr(heads.module, "layer_idx", place) for place, heads in enumerate(captured)]
    shared = len({heads.module for heads in captured}) < len(captured)
    if shared:
        raise UserError(f"teacher.path={name}: the layers of {model.config.model_type} share one attention module")
    if found != list(range(model.config.num_hidden_layers)):
        raise UserError(f"teacher.path={name}: only some layers of {model.config.model_type} are softmax attention")
    names = {module: path for path, module in model.named_modules()}
    return [
        {
            "module": names[heads.module],
            "heads": heads.query.shape[1],
            "kv_heads": heads.key.shape[1],
            "head_dim": heads.query.shape[-1],
        }
        for heads in captured
    ]


def check_family(key: str, model_type: str, task: Task) -> None:
    """UserError for a model type that is made for another task."""
    if model_type not in task.families and (fitting := other_task(task, lambda each: model_type in each.families)):
        refuse(key, model_type, *fitting)


def check_direction(key: str, model_type: str, attentions: Iterable[nn.Module], task: Task) -> None:
    """UserError where attention does not look the way that the task is about."""
    seen = {is_causal(attention) for attention in attentions}
    if (not task.causal) in seen and (fitting := other_task(task, lambda each: each.causal is not task.causal)):
        refuse(key, model_type, *fitting)


def refuse(key: str, model_type: str, name: str, fitting: Task) -> None:
    article = "an" if fitting.kind[0] in "aeiou" else "a"
    raise UserError(f"{key}: {model_type} is {article} {fitting.kind}; set task={name}")


def check_context(model_config: Any, context: int) -> None:
    """UserError if blocks would be longer than what the teacher was trained to read."""
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise UserError(
            f"data.context={context} is longer than the teacher's {positions} positions; lower data.context"
        )


def _from_hub(auto: Any, path: str, **kwargs: Any) -> Any:
    """auto.from_pretrained with its many errors as one line."""
    local = Path(path).expanduser()
    if local.is_dir():
        path = str(local)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"teacher.path={path} does not exist: give a directory or a hub name")
    try:
        return auto.from_pretrained(path, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        cure = "" if local.is_dir() else "; give a local directory if the hub cannot be reached"
        raise UserError(f"teacher.path={path} cannot be loaded: {reason}{cure}") from error
