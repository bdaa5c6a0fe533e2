"""What a model makes of held-out text."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config import Config
from ..data import Corpus
from ..rundir import RunDirectory
from ..stages.fit import device_of
from ..task import DECODER, NO_TARGET, TASKS, Task


class Reading(NamedTuple):
    """nll: nats per target of each block (blocks,); predicted: the likeliest tokens (blocks, M), NO_TARGET at others.

    Targets are the next tokens of a decoder, and the masked ones of an encoder.
    """

    nll: Tensor
    predicted: Tensor

    @property
    def perplexity(self) -> float:
        return (self.nll * self.weights).mean().exp().item()

    @property
    def tokens(self) -> int:
        return int((self.predicted != NO_TARGET).sum())

    @property
    def weights(self) -> Tensor:
        """The number of targets in each block over the mean one: all alike, but where tokens were masked by chance."""
        targets = (self.predicted != NO_TARGET).sum(1).double()
        return targets / targets.mean().clamp(min=1e-30)


@torch.no_grad()
def read(model: nn.Module, batches: DataLoader, device: torch.device, task: Task = DECODER) -> Reading:
    """The model's reading of all batches; blocks are read alone, each from its first token."""
    training = model.training
    model.eval().to(device)
    nll, predicted = [], []
    for batch in batches:
        batch = {name: each.to(device) for name, each in batch.items()}
        logits = model(input_ids=batch["input_ids"], **task.arguments).logits
        found = task.predictions(logits, batch)
        total, targets = task.nll(logits, batch).sum(1), (found != NO_TARGET).sum(1)
        nll.append((total / targets.clamp(min=1)).double().cpu())
        predicted.append(found.cpu())
    model.train(training)
    return Reading(torch.cat(nll), torch.cat(predicted))


def read_domains(model: nn.Module, corpus: Corpus, config: Config, run: RunDirectory) -> dict[str, Reading]:
    """The model's reading of every domain's held-out text."""
    device = device_of(config)
    with run.timed("measure"):
        return {
            domain: read(model, corpus.evaluation(domain, config.measure.batch_size), device, TASKS[config.task])
            for domain in corpus.validation
        }


def ratio(student: Reading, teacher: Reading) -> float:
    """Student's perplexity over teacher's, same text, same context."""
    return student.perplexity / teacher.perplexity


def ratio_error(student: Reading, teacher: Reading) -> float:
    """Standard error of `ratio` over blocks, which both have read: that of the paired log gap, times the ratio.

    NaN where there is a single block.
    """
    gap = (student.nll - teacher.nll) * teacher.weights
    return (gap.std() / len(gap) ** 0.5).item() * ratio(student, teacher) if len(gap) > 1 else math.nan


def agreement(student: Reading, teacher: Reading) -> float:
    """Share of targets where both find the same token likeliest."""
    targets = teacher.predicted != NO_TARGET
    return (student.predicted == teacher.predicted)[targets].double().mean().item()
