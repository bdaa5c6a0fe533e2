"""How often a classifier is right, and how much of that its student keeps."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from .perplexity import Reading


def accuracy(found: Tensor, labels: Tensor, classes: int, positive: int) -> Tensor:
    """The share of texts whose label, or whose partner, is found."""
    return (found == labels).double().mean()


def f1(found: Tensor, labels: Tensor, classes: int, positive: int) -> Tensor:
    """The harmonic mean of precision and recall: of the positive class where there are two, else the mean over all."""
    each = multiclass_f1_score(found, labels, classes, average="none")
    return each[positive] if classes == 2 else each.mean()


def mcc(found: Tensor, labels: Tensor, classes: int, positive: int) -> Tensor:
    """Matthews' correlation of labels and what is found: 1 is always right; 0 is chance, or always the same answer.

    (c s − Σ_k p_k t_k) / √((s² − Σ p_k²) (s² − Σ t_k²)) with c right of s texts, class k found p_k and meant t_k times.
    """
    table = multiclass_confusion_matrix(found, labels, classes).double()
    right, every, meant, called = table.trace(), table.sum(), table.sum(1), table.sum(0)
    size = (every**2 - called.square().sum()) * (every**2 - meant.square().sum())
    return (right * every - called @ meant) / size.sqrt() if size > 0 else torch.zeros(())


Score: TypeAlias = Callable[[Tensor, Tensor, int, int], Tensor]
#: What every task with a right answer for each text is judged by, and what GLUE's are beside that, by name.
ALWAYS: dict[str, Score] = {"accuracy": accuracy}
OF_CLASSES: dict[str, Score] = {"f1": f1, "mcc": mcc}


def score(reading: Reading, classes: int, positive: int) -> dict[str, float]:
    """Every score by its name. classes: how many; 0 where the answers are no classes, but other texts."""
    found, labels = reading.predicted.flatten(), reading.targets.flatten()
    wanted = ALWAYS | OF_CLASSES if classes else ALWAYS
    return {name: each(found, labels, classes, positive).item() for name, each in wanted.items()}


def compared(readings: dict[str, Reading], classes: int, positive: int) -> dict[str, dict[str, Any]]:
    """By score: that of each who has read the texts, the student and its teacher among them, and `recovery`, the
    student's over the teacher's, None where that is not above 0. Of the accuracy also `error`, one standard error of
    student − teacher, and `constant`, that of always answering what is most frequent. Of embeddings also `cosine`, to
    the teacher's."""
    each = {who: score(reading, classes, positive) for who, reading in readings.items()}
    found: dict[str, dict[str, Any]] = {name: {who: each[who][name] for who in each} for name in each["student"]}
    for scores in found.values():
        scores["recovery"] = scores["student"] / scores["teacher"] if scores["teacher"] > 0 else None
    student, teacher = readings["student"], readings["teacher"]
    gap = (student.predicted == student.targets).double() - (teacher.predicted == teacher.targets).double()
    found["accuracy"]["constant"] = teacher.targets.flatten().bincount().max().item() / len(teacher.targets)
    found["accuracy"]["error"] = (gap.std() / len(gap) ** 0.5).item() if len(gap) > 1 else math.nan
    if student.cosine is not None:
        near = {who: each.cosine.mean().item() for who, each in readings.items() if each.cosine is not None}
        found["cosine"] = {"teacher": 1.0, **near, "recovery": near["student"]}
    return found
