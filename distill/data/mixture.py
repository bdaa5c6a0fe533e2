"""Several domains → the batches that a stage trains on, mixed by weight, and the blocks that it is measured on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedTokenizerBase

from ..config import Data, Domain
from ..errors import UserError
from ..task import DECODER, Collate, Task
from . import labelled
from .packing import pack
from .sources import Splits, is_local, load

#: Of the training blocks, the share that is held out where a domain has no validation text.
HELD_OUT = 0.05
#: The seed of what is left to chance in held-out blocks: of every run the same, so that runs can be compared.
EVALUATION = 0
#: Blocks of a stream among which the next one is drawn.
BUFFER = 1000

Blocks: TypeAlias = Dataset | IterableDataset


class Packed(NamedTuple):
    """train: None of a domain that is only measured."""

    train: Blocks | None
    validation: Dataset


@dataclass
class Corpus:
    """Blocks of `context` tokens by domain, in the column `input_ids`.

    train: streams where the configuration asked for streaming. validation: in the order of the text.
    weights: each domain's share of the training blocks; they sum to one. seed: decides how domains take turns.
    workers: processes that load batches. domains: where the text came from. collate: how blocks become a batch, by
    chance from a seed; None: stacked as they are. classes: what the labels of texts are called, in the order of their
    numbers; a block is then a text of its own length, with `labels`.
    """

    domains: dict[str, Domain]
    train: dict[str, Blocks]
    validation: dict[str, Dataset]
    weights: dict[str, float]
    seed: int
    workers: int
    collate: Collate = None
    classes: list[str] | None = None

    def batches(self, steps: int, batch_size: int, seed: int) -> DataLoader:
        """Exactly `steps` batches {"input_ids": (batch_size, context), int64}, the same ones for the same seed.

        Text that is too short is read again, each time in a new order.
        """
        if isinstance(self._mixed, IterableDataset):
            stream = self._mixed.shuffle(seed=seed, buffer_size=BUFFER).take(steps * batch_size)
            # A second worker would read the same stream beside the first.
            return self._loader(stream, batch_size, seed, workers=min(self.workers, 1))
        order = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(self._mixed, num_samples=steps * batch_size, generator=order)
        return self._loader(self._mixed, batch_size, seed, self.workers, sampler)

    def evaluation(self, domain: str, batch_size: int) -> DataLoader:
        """The domain's validation blocks in order, the same at every call; the last batch may be smaller."""
        return self._loader(self.validation[domain], batch_size, EVALUATION, workers=0)

    @cached_property
    def _mixed(self) -> Blocks:
        """All domains in one data set. A stream has no end: each domain starts again when it is through."""
        domains, shares = list(self.train.values()), list(self.weights.values())
        endless = [domain.repeat(None) if isinstance(domain, IterableDataset) else domain for domain in domains]
        mixed = interleave_datasets(endless, probabilities=shares, seed=self.seed, stopping_strategy="all_exhausted")
        # Interleaving streams loses their format.
        return mixed.with_format("torch")

    def _loader(
        self, blocks: Blocks, batch_size: int, seed: int, workers: int, sampler: RandomSampler | None = None
    ) -> DataLoader:
        # A generator of its own: the loader would otherwise draw from the program's.
        generator = torch.Generator().manual_seed(seed)
        collate = None if self.collate is None else self.collate(seed)
        return DataLoader(
            blocks, batch_size, sampler=sampler, num_workers=workers, generator=generator, collate_fn=collate
        )


def prepare(
    config: Data,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    task: Task = DECODER,
    classes: list[str] | None = None,
) -> Corpus:
    """Loads, tokenises and packs every domain; a second run with the same text and tokenizer reads it from disk.

    Of a task with labels, a row is a text and not packed; classes: what its model calls them, None for one that is yet
    to be made, which takes those of the first domain.

    A domain of weight 0 is only measured. Where another has no validation text, the last 5 % of its packed blocks (at
    least one) are held out, or, of a stream, the first `validation_blocks`. At most `validation_blocks` are kept,
    evenly spread over the text; of a stream the first ones. UserError names the key or file that does not fit.
    """
    domains = _checked(config, task)
    texts = {name: _texts(domain, config, task) for name, domain in domains.items()}
    encode = partial(pack, tokenizer=tokenizer, context=config.context)
    if task.labelled:
        classes = classes or labelled.classes(next(iter(texts.values())).train)
        encode = partial(labelled.encode, tokenizer=tokenizer, context=config.context, names=classes)
    packed = {name: _dealt(name, domain, config, texts[name], encode) for name, domain in domains.items()}
    total = sum(domain.weight for domain in domains.values())
    return Corpus(
        domains=domains,
        train={name: blocks.train for name, blocks in packed.items() if blocks.train is not None},
        validation={name: blocks.validation for name, blocks in packed.items()},
        weights={name: domain.weight / total for name, domain in domains.items() if domain.weight},
        seed=seed,
        workers=config.workers,
        collate=task.collate(tokenizer),
        classes=classes,
    )


def training_texts(config: Data, task: Task = DECODER) -> Iterator[str]:
    """Every document that `prepare` would train on, domain by domain: what a tokenizer is made from."""
    for domain in _checked(config, task).values():
        if domain.weight:
            train = _texts(domain, config, task).train
            yield from (row[name] for row in train for name in ("text", "pair") if name in row)


def _texts(domain: Domain, config: Data, task: Task) -> Splits:
    return labelled.load(domain) if task.labelled else load(domain, config.streaming)


def _checked(config: Data, task: Task) -> dict[str, Domain]:
    if task.labelled and config.streaming:
        raise UserError("data.streaming=true: labelled texts are read whole; set it to false")
    if config.context < 2:
        raise UserError(f"data.context={config.context} leaves no token to predict: give at least 2")
    if config.validation_blocks < 1:
        raise UserError(f"data.validation_blocks={config.validation_blocks} measures nothing: give at least 1")
    domains = config.domains if config.path is None else _single(config.path, config)
    if not domains:
        raise UserError("data has no domain: give data.path, or an entry in data.domains")
    for name, domain in domains.items():
        if domain.weight < 0:
            raise UserError(f"data.domains.{name}.weight={domain.weight}: give a positive weight, or 0 to measure only")
    if not any(domain.weight for domain in domains.values()):
        raise UserError("data.domains: every weight is 0, so that there is no text to train on; give one a weight")
    return domains


def _single(path: str, config: Data) -> dict[str, Domain]:
    """`data.path` as a domain, named after the part of the embedded corpus, the file without extensions, or the hub."""
    local = Path(path).expanduser().resolve().name.split(".")[0]
    name = config.name or path if path == "python" else local if is_local(path) else path.split("/")[-1]
    return {name: Domain(path, name=config.name, validation=config.validation)}


def _dealt(name: str, domain: Domain, config: Data, texts: Splits, encode: Callable[..., Any]) -> Packed:
    """What a domain trains on and what it is measured on; encode: texts and what to call them → blocks of tokens."""
    wanted = config.validation_blocks
    if not domain.weight:
        # Never trained on, so that all of it can be held out.
        held_out = texts.train if texts.validation is None else texts.validation
        return Packed(None, _spread(encode(held_out, domain=name), wanted))
    train = encode(texts.train, domain=name)
    if texts.validation is not None:
        return Packed(train, _spread(encode(texts.validation, domain=f"{name} (validation)"), wanted))
    if isinstance(train, IterableDataset):
        return Packed(_some(train.skip(wanted), name, config), _spread(train, wanted))
    kept = len(train) - max(1, int(HELD_OUT * len(train)))
    rest = _some(train.select(range(kept)), name, config)
    return Packed(rest, _spread(train.select(range(kept, len(train))), wanted))


def _spread(blocks: Blocks, wanted: int) -> Dataset:
    """At most `wanted` blocks, evenly spread over the text; of a stream, whose length is unknown, the first ones."""
    if isinstance(blocks, IterableDataset):
        return Dataset.from_list(list(blocks.with_format(None).take(wanted))).with_format("torch")
    kept = min(wanted, len(blocks))
    return blocks.select([i * len(blocks) // kept for i in range(kept)])


def _some(train: Blocks, name: str, config: Data) -> Blocks:
    """What is left to train on once blocks are held out."""
    if next(iter(train), None) is None:
        raise UserError(
            f"domain {name} has no block of data.context={config.context} left to train on once some are held out "
            "for validation: give more text, a smaller context, or data.validation"
        )
    return train
