"""What a model is trained to do, and all that differs between the tasks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedTokenizerBase

from ..divergence import divergence, logit_kl
from ..flexformer.model import Flexformer
from .batches import NO_TARGET, Batch, Collate

#: What a model reads of a batch.
READ = ("input_ids", "attention_mask", "token_type_ids")
#: At how many targets at a time two predictions are held against each other: a vocabulary can be large.
TOGETHER = 256


def next_tokens(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of a conversation, those that the assistant says."""
    return logits[:, :-1], batch.get("labels", batch["input_ids"])[:, 1:]


def masked_tokens(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return logits, batch["labels"]


def class_of_text(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    return logits[:, None], batch["labels"][:, None]


@dataclass(frozen=True)
class Task:
    """auto, student: transformers' class of the teacher, and the student's. families: model types that can do it.

    kind: what such models are called. arguments: beside the tokens, of every forward pass. predicted: what a target is
    called. special_tokens: those that a tokenizer needs beside the one that ends a text. labelled, paired: rows are
    texts with a label each, or two by two, and no blocks of a running text. spared: the part of a model that is not
    used, which its weights may lack. collate: how rows of tokens become batches. targets: what `predict` makes, and its
    batch → the logits that have a target (B, M, V), and the targets (B, M), NO_TARGET where there is none after all.
    """

    kind: str
    auto: Any
    student: type[Flexformer]
    families: Collection[str]
    causal: bool
    predicted: str
    collate: Callable[[PreTrainedTokenizerBase], Collate]
    targets: Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
    arguments: dict[str, Any] = field(default_factory=dict)
    special_tokens: dict[str, str] = field(default_factory=dict)
    labelled: bool = False
    paired: bool = False
    spared: str | None = None

    @property
    def scored(self) -> bool:
        """Whether it is told how often a prediction is right: there is one for each text, and a right one."""
        return self.labelled or self.paired

    def spares(self, weight: str) -> bool:
        """Whether a model of this task can do without a weight."""
        return weight.split(".")[0] == self.spared

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What a model is called with."""
        return {name: batch[name] for name in READ if name in batch} | self.arguments

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """Logits (B, N, V), or (B, V) of whole texts: what all below is computed from."""
        return model(**self.inputs(batch)).logits

    def gap(self, teacher: Tensor, student: Tensor, batch: Batch, temperature: float) -> Tensor:
        """What stage 2 minimises: T² KL(teacher‖student) at temperature T, mean over the predictions it matches."""
        target, found = self.matched(batch, teacher, student)
        return logit_kl(target, found, temperature)

    def cosine(self, teacher: Tensor, student: Tensor) -> Tensor | None:
        """Of two embeddings of each text, mean over the texts of a row (B,); None of models that embed none."""
        return None

    def complete(self, model: Any, path: str | None) -> None:
        """Tells a model what its configuration does not say, from files beside it; path: None of a new one."""

    def save_beside(self, model: Any, folder: Path, context: int) -> None:
        """Writes what other libraries look for beside a model of this task."""

    def matched(self, batch: Batch, *predictions: Tensor) -> list[Tensor]:
        """Of predictions (B, N, …) those that stage 2 matches: all, or of conversations those of the targets (M, …)."""
        if not self.causal or "labels" not in batch:
            return list(predictions)
        said = pad(batch["labels"][:, 1:] != NO_TARGET, (0, 1))
        return [each[said] for each in predictions]

    def nll(self, logits: Tensor, batch: Batch) -> Tensor:
        """−log p of every target in nats, 0 where there is none: (B, M)."""
        logits, targets = self.targets(logits.float(), batch)
        return cross_entropy(logits.mT, targets, reduction="none", ignore_index=NO_TARGET)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean −log p over all targets; 0 in a batch that has none."""
        logits, targets = self.targets(logits.float(), batch)
        total = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=NO_TARGET)
        return total / (targets != NO_TARGET).sum().clamp(min=1)

    def counted(self, logits: Tensor, batch: Batch) -> Tensor:
        """Where there is a target: (B, M)."""
        return self.targets(logits, batch)[1] != NO_TARGET

    def kl(self, teacher: Tensor, student: Tensor, batch: Batch) -> Tensor:
        """KL(teacher‖student) of their logits (B, N, V) at every target in nats, 0 where there is none: (B, M)."""
        (teacher, targets), (student, _) = self.targets(teacher, batch), self.targets(student, batch)
        found = torch.zeros(targets.shape, device=targets.device)
        for rows in (targets != NO_TARGET).nonzero().split(TOGETHER):
            at = rows.unbind(1)
            found[at] = divergence(teacher[at], student[at]).to(found.dtype)
        return found

    def predictions(self, logits: Tensor, batch: Batch) -> Tensor:
        """The likeliest token at every target, NO_TARGET where there is none: (B, M)."""
        logits, targets = self.targets(logits, batch)
        return torch.where(targets == NO_TARGET, NO_TARGET, logits.argmax(-1))
