"""What a model makes of held-out text."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from ..config import Config
from ..data import Corpus
from ..rundir import RunDirectory
from ..stages.fit import device_of


class Reading(NamedTuple):
    """nll: nats per token of each block (blocks,); predicted: the likeliest next tokens (blocks, N − 1)."""

    nll: Tensor
    predicted: Tensor

    @property
    def perplexity(self) -> float:
        return self.nll.mean().exp().item()

    @property
    def tokens(self) -> int:
        return self.predicted.numel()


@torch.no_grad()
def read(model: nn.Module, batches: DataLoader, device: torch.device) -> Reading:
    """The model's reading of all batches {"input_ids": (B, N)}; blocks are read alone, each from its first token."""
    training = model.training
    model.eval().to(device)
    nll, predicted = [], []
    for batch in batches:
        input_ids = batch["input_ids"].to(device)
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        loss = cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
        nll.append(loss.view(len(input_ids), -1).mean(1).double().cpu())
        predicted.append(logits.argmax(-1).cpu())
    model.train(training)
    return Reading(torch.cat(nll), torch.cat(predicted))


def read_domains(model: nn.Module, corpus: Corpus, config: Config, run: RunDirectory) -> dict[str, Reading]:
    """The model's reading of every domain's held-out text."""
    device = device_of(config)
    with run.timed("measure"):
        return {
            domain: read(model, corpus.evaluation(domain, config.measure.batch_size), device)
            for domain in corpus.validation
        }


def ratio(student: Reading, teacher: Reading) -> float:
    """Student's perplexity over teacher's, same text, same context."""
    return student.perplexity / teacher.perplexity


def ratio_error(student: Reading, teacher: Reading) -> float:
    """Standard error of `ratio` over blocks, which both have read: that of the paired log gap, times the ratio."""
    gap = student.nll - teacher.nll
    return (gap.std() / len(gap) ** 0.5).item() * ratio(student, teacher)


def agreement(student: Reading, teacher: Reading) -> float:
    """Share of positions where both find the same next token likeliest."""
    return (student.predicted == teacher.predicted).double().mean().item()
