"""What a model makes of held-out text, and how far that is from what its teacher makes of it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from ..config import Config
from ..data import Corpus
from ..rundir import RunDirectory
from ..stages.fit import device_of
from ..task import DECODER, NO_TARGET, TASKS, Task
from ..teacher import Teacher


class Reading(NamedTuple):
    """nll: nats per target of each block (blocks,); predicted: the likeliest tokens (blocks, M), NO_TARGET at others.

    targets: what was to be predicted (blocks, M). kl: KL(teacher‖model) in nats per target of each block (blocks,);
    None where it was not held against a teacher, as is cosine: that of both embeddings of each text (blocks,), where
    texts are embedded. Targets are the next tokens of a decoder, the masked ones of an encoder, the label of a
    text, or the text that it belongs with.
    """

    nll: Tensor
    predicted: Tensor
    targets: Tensor
    kl: Tensor | None = None
    cosine: Tensor | None = None

    @property
    def perplexity(self) -> float:
        return (self.nll * self.weights).mean().exp().item()

    @property
    def divergence(self) -> float | None:
        """KL(teacher‖model) in nats, mean over targets: only agreeing with the teacher lowers it."""
        return None if self.kl is None else (self.kl * self.weights).mean().item()

    @property
    def tokens(self) -> int:
        return int((self.predicted != NO_TARGET).sum())

    @property
    def weights(self) -> Tensor:
        """The number of targets in each block over the mean one: all alike, but where tokens were masked by chance."""
        targets = (self.predicted != NO_TARGET).sum(1).double()
        return targets / targets.mean().clamp(min=1e-30)


@torch.no_grad()
def read(
    model: nn.Module,
    batches: DataLoader,
    device: torch.device,
    task: Task = DECODER,
    teacher: Teacher | None = None,
) -> Reading:
    """The model's reading of all batches, held against the teacher's where there is one.

    Blocks are read alone, each from its first token.
    """
    training = model.training
    model.eval().to(device)
    if teacher is not None:
        teacher.to(device)
    nll, predicted, targets, kl, cosine = [], [], list[Tensor](), list[Tensor](), list[Tensor]()
    for batch in batches:
        batch = {name: each.to(device) for name, each in batch.items()}
        made = task.predict(model, batch)
        found = task.predictions(made, batch)
        nll.append(per_target(task.nll(made, batch), found))
        predicted.append(found.cpu())
        targets.append(task.targets(made, batch)[1].cpu())
        if teacher is not None:
            wanted = teacher.predict(batch)
            kl.append(per_target(task.kl(wanted, made, batch), found))
            if (near := task.cosine(wanted, made)) is not None:
                cosine.append(near.double().cpu())
    model.train(training)
    held = (torch.cat(each) if each else None for each in (kl, cosine))
    return Reading(torch.cat(nll), together(predicted), together(targets), *held)


def together(batches: list[Tensor]) -> Tensor:
    """(B, M) of every batch → (blocks, M) as wide as the widest, NO_TARGET where one has none."""
    widest = max(batch.shape[1] for batch in batches)
    return torch.cat([pad(batch, (0, widest - batch.shape[1]), value=NO_TARGET) for batch in batches])


def per_target(values: Tensor, predicted: Tensor) -> Tensor:
    """The mean of each block over its targets, 0 where it has none: (B, M), as are the predictions → (B,)."""
    targets = (predicted != NO_TARGET).sum(1)
    return (values.sum(1) / targets.clamp(min=1)).double().cpu()


def read_domains(
    model: nn.Module, corpus: Corpus, config: Config, run: RunDirectory, teacher: Teacher | None = None
) -> dict[str, Reading]:
    """The model's reading of every domain's held-out text, held against the teacher's where there is one."""
    device, task, size = device_of(config), TASKS[config.task], config.measure.batch_size
    with run.timed("measure"):
        return {
            domain: read(model, corpus.evaluation(domain, size), device, task, teacher) for domain in corpus.validation
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
