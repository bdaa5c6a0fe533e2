"""The frozen softmax teacher: what it predicts, and what goes into its attention."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import config
from .capture import Heads, capture
from .errors import UserError
from .loading import check_tokens, check_whole, load_model, load_tokenizer, quantized
from .swappable import attention_layers
from .task import DECODER, Batch, Task


@dataclass
class Teacher:
    """A frozen PreTrainedModel, its tokenizer, and its attention layers as FlexformerConfig wants them.

    stored: the dtype of its weights on disk, whatever they were loaded as. whole: loads the model with all bits of its
    weights, where `model` has fewer; loaded: their `weights_hash` as they came. Deliberately no nn.Module: a Lightning
    module that holds one would copy it into every checkpoint.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layers: list[dict[str, Any]]
    stored: torch.dtype
    task: Task = DECODER
    whole: Callable[[], Any] | None = None
    loaded: str | None = None

    @property
    def classes(self) -> list[str] | None:
        """What a classifier calls its labels, in the order of its logits; None of a language model."""
        labels = self.model.config.id2label
        return [labels[number] for number in range(len(labels))] if self.task.labelled else None

    def weights(self) -> dict[str, Tensor]:
        """What a student starts from."""
        return (self.model if self.whole is None else self.whole()).state_dict()

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @torch.no_grad()
    def heads(self, batch: Batch, layers: int | None = None) -> list[Heads]:
        """Queries, keys and values of the first `layers`, or all, from one forward pass, which ends there."""
        with capture(layers or len(self.layers)) as captured:
            self.model.base_model(**self.task.inputs(batch))
        return [heads._replace(padding=batch.get("attention_mask")) for heads in captured.heads]

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """What the task makes of a batch, see `Task.predict`."""
        return self.task.predict(self.model, batch)

    def weights_hash(self) -> str:
        return self.loaded or weights_hash(self.model)


def weights_hash(model: Any) -> str:
    """sha256 over names and contents of all weights, in the order of the state dictionary."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_teacher(wanted: config.Teacher, context: int, task: Task = DECODER) -> Teacher:
    """The teacher at teacher.path, frozen; UserError where it cannot be had or its attention cannot be swapped."""
    if wanted.path is None:
        raise UserError("teacher.path is missing: give a directory, a hub name, or pocket")
    dtype = getattr(torch, wanted.dtype)
    model, told, stored = load_model(wanted, context, task, dtype, **quantized(wanted, task))
    # Before the first token: computing changes some weights that have fewer bits.
    loaded = None if wanted.quantization is None else weights_hash(model)
    teacher = freeze(wanted.path, model, load_tokenizer(wanted), stored, task, context)
    if wanted.quantization is not None:
        teacher.loaded = loaded
        teacher.whole = lambda: load_model(wanted, context, task, dtype)[0]
    check_whole(f"teacher.path={wanted.path}", model, told, task)
    check_tokens(f"teacher.path={wanted.path}", teacher.tokenizer, task)
    return teacher


def freeze(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stored: torch.dtype,
    task: Task = DECODER,
    context: int | None = None,
) -> Teacher:
    """A Teacher around a model in memory; UserError if its attention cannot be swapped.

    context: the tokens that it will read at once at most; None: any number.
    """
    model.eval().requires_grad_(False)
    return Teacher(name, model, tokenizer, attention_layers(name, model, task, context), stored, task)
