"""Rows of tokens → the batches that a model reads, by task."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

#: The share of the tokens that a masked language model has to find again, as BERT has it.
MASKED = 0.15
#: A target that is none: transformers' label for a token that is not to be predicted.
NO_TARGET = -100

#: {"input_ids": (B, N)}; "attention_mask" (B, N), 0 at padding, where texts differ in length; "labels" where the
#: targets are not the tokens themselves.
Batch: TypeAlias = dict[str, Tensor]
#: The rows of a batch → the batch, from a seed; None: stacked as they are.
Collate: TypeAlias = Callable[[int], Callable[[list[Batch]], Batch]] | None


def tokens_of(batch: Batch) -> int:
    """How many there are, without padding."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


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


class Pairing(Padding):
    """Texts two by two → a batch of B texts and then, in the same order, the partner of each: (2B, N)."""

    def __call__(self, rows: list[Batch]) -> Batch:
        return super().__call__([{"input_ids": row[name]} for name in ("input_ids", "partner_ids") for row in rows])


def paired(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return partial(Pairing, tokenizer)


def padded(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return partial(Padding, tokenizer)
