"""Several domains → the batches that a stage trains on, mixed by weight, and the blocks that it is measured on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from ..config import Domain
from ..task import Collate

#: The seed of what is left to chance in held-out blocks: of every run the same, so that runs can be compared.
EVALUATION = 0
#: Blocks of a stream among which the next one is drawn.
BUFFER = 1000

Blocks: TypeAlias = Dataset | IterableDataset


@dataclass
class Corpus:
    """Blocks of `context` tokens by domain, in the column `input_ids`.

    train: streams where the configuration asked for streaming. validation: in the order of the text.
    weights: each domain's share of the training blocks; they sum to one. seed: decides how domains take turns.
    workers: processes that load batches. domains: where the text came from. collate: how blocks become a batch, by
    chance from a seed; None: stacked as they are. classes: what the labels of texts are called, in the order of their
    numbers; a block is then a text of its own length, with `labels`. positive: the class that F1 is of where there are
    two. even: held-out rows are read in batches of one size, since a batch decides over what is measured. running: all
    that is held out of each domain, of which `validation` is a part, as blocks that follow one another in the text;
    none where rows are no blocks.
    """

    domains: dict[str, Domain]
    train: dict[str, Blocks]
    validation: dict[str, Dataset]
    weights: dict[str, float]
    seed: int
    workers: int
    collate: Collate = None
    classes: list[str] | None = None
    positive: int = 1
    even: bool = False
    running: dict[str, Dataset] = field(default_factory=dict)

    def batches(self, steps: int, batch_size: int, seed: int) -> DataLoader:
        """Exactly `steps` batches, {"input_ids": (batch_size, context), int64} where blocks are stacked as they are.

        The same ones for the same seed.

        Text that is too short is read again, each time in a new order.
        """
        if isinstance(self._mixed, IterableDataset):
            stream = self._mixed.shuffle(seed=seed, buffer_size=BUFFER).take(steps * batch_size)
            # A second worker would read the same stream beside the first.
            return self._loader(stream, batch_size, seed, workers=min(self.workers, 1))
        order = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(self._mixed, num_samples=steps * batch_size, generator=order)
        return self._loader(self._mixed, batch_size, seed, self.workers, sampler)

    def evaluation(self, domain: str, batch_size: int, blocks: int | None = None) -> DataLoader:
        """The domain's validation blocks in order, or at most `blocks` of them, evenly spread; the same at every call.

        The last batch may be smaller, but where they are to be even: what would be left for it is then not read.
        """
        held_out = self.validation[domain]
        if blocks is not None and blocks < len(held_out):
            held_out = held_out.select([i * len(held_out) // blocks for i in range(blocks)])
        if self.even and len(held_out) > batch_size:
            held_out = held_out.select(range(len(held_out) // batch_size * batch_size))
        return self._loader(held_out, batch_size, EVALUATION, workers=0)

    def stretches(self, domain: str, blocks: int, count: int) -> Iterator[Tensor]:
        """At most `count` stretches of `blocks` blocks that follow one another in the held-out text, evenly spread over
        it: (blocks · context,). Nothing of text that is shorter."""
        running = self.running[domain]
        there = len(running) // blocks
        for place in range(min(count, there)):
            first = place * there // min(count, there) * blocks
            yield torch.cat(list(running[first : first + blocks]["input_ids"]))

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
