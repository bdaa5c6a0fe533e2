"""What a model is trained to do, and all that differs between the tasks."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from .divergence import divergence
from .flexformer.encoder import FlexformerForMaskedLM, FlexformerForSequenceClassification
from .flexformer.model import Flexformer, FlexformerForCausalLM

#: The share of the tokens that a masked language model has to find again, as BERT has it.
MASKED = 0.15
#: A target that is none: transformers' label for a token that is not to be predicted.
NO_TARGET = -100
#: At how many targets at a time two predictions are held against each other: a vocabulary can be large.
TOGETHER = 256

#: {"input_ids": (B, N)}; "attention_mask" (B, N), 0 at padding, where texts differ in length; "labels" where the
#: targets are not the tokens themselves.
Batch: TypeAlias = dict[str, Tensor]
#: What a model reads of a batch.
READ = ("input_ids", "attention_mask", "token_type_ids")
#: The rows of a batch → the batch, from a seed; None: stacked as they are.
Collate: TypeAlias = Callable[[int], Callable[[list[Batch]], Batch]] | None


class Masking:
    """Rows of tokens → a batch in which 15 % of them are targets, most of these hidden behind the mask token.

    BERT's way, by transformers' own collator; tokens that end a text are never targets. One seed gives one sequence of
    masks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int):
        # To older releases a seed of 0 is none.
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED, seed=seed + 1)

    def __call__(self, rows: list[Batch]) -> Batch:
        return dict(self.collator([row["input_ids"] for row in rows]))


def as_they_are(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return None


def masked(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return partial(Masking, tokenizer)


class Padding:
    """Texts of their own lengths → a batch as long as the longest, with `attention_mask`; nothing is left to chance.

    Filled up on the right, or an encoder's learned positions would depend on what a text lies beside. Nothing looks at
    what is filled in, so that any token will do where the tokenizer has none for it. Labels are (B,) of texts, and
    (B, N) of tokens, NO_TARGET at padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int):
        filling = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.filling = {"input_ids": filling or 0, "labels": NO_TARGET}

    def __call__(self, rows: list[Batch]) -> Batch:
        def fill(columns: list[Tensor], value: int = 0) -> Tensor:
            return pad_sequence(columns, batch_first=True, padding_value=value)

        columns = {name: [row[name].long() for row in rows] for name in rows[0]}
        batch = {
            name: fill(each, self.filling.get(name, 0)) if each[0].dim() else torch.stack(each)
            for name, each in columns.items()
        }
        return batch | {"attention_mask": fill([torch.ones_like(ids) for ids in columns["input_ids"]])}


def padded(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return partial(Padding, tokenizer)


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
    called. special_tokens: those that a tokenizer needs beside the one that ends a text. labelled: rows are texts with
    a label each, and no blocks of a running text. collate: how rows of tokens become batches. targets: logits
    (B, N, V), or (B, V) of whole texts, and their batch → the logits that have a target (B, M, V), and the targets
    (B, M), NO_TARGET at those that have none after all.
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

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What a model is called with."""
        return {name: batch[name] for name in READ if name in batch} | self.arguments

    def matched(self, batch: Batch) -> Tensor | None:
        """Which of a batch's predictions stage 2 matches (B, N): of conversations those of the targets; None: all."""
        if not self.causal or "labels" not in batch:
            return None
        return pad(batch["labels"][:, 1:] != NO_TARGET, (0, 1))

    def nll(self, logits: Tensor, batch: Batch) -> Tensor:
        """−log p of every target in nats, 0 where there is none: (B, M)."""
        logits, targets = self.targets(logits.float(), batch)
        return cross_entropy(logits.mT, targets, reduction="none", ignore_index=NO_TARGET)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean −log p over all targets; 0 in a batch that has none."""
        logits, targets = self.targets(logits.float(), batch)
        total = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=NO_TARGET)
        return total / (targets != NO_TARGET).sum().clamp(min=1)

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


#: Every task by the name used in `task`.
TASKS: dict[str, Task] = {
    "causal_lm": Task(
        kind="decoder",
        auto=AutoModelForCausalLM,
        student=FlexformerForCausalLM,
        families=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        causal=True,
        predicted="next token",
        collate=as_they_are,
        targets=next_tokens,
        arguments={"use_cache": False},
    ),
    "masked_lm": Task(
        kind="encoder",
        auto=AutoModelForMaskedLM,
        student=FlexformerForMaskedLM,
        families=MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        causal=False,
        predicted="masked token",
        collate=masked,
        targets=masked_tokens,
        special_tokens={"pad_token": "[PAD]", "mask_token": "[MASK]"},
    ),
    "sequence_classification": Task(
        kind="encoder",
        auto=AutoModelForSequenceClassification,
        student=FlexformerForSequenceClassification,
        families=MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        causal=False,
        predicted="label",
        collate=padded,
        targets=class_of_text,
        special_tokens={"pad_token": "[PAD]"},
        labelled=True,
    ),
}
#: What models do where nothing else is said.
DECODER = TASKS["causal_lm"]


def tokens_of(batch: Batch) -> int:
    """How many there are, without padding."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def other_task(task: Task, fits: Callable[[Task], bool]) -> tuple[str, Task] | None:
    """The name and the task, other than `task`, that fits; None where none does."""
    return next(((name, each) for name, each in TASKS.items() if each is not task and fits(each)), None)
