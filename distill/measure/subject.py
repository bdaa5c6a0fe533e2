"""What the sections of a report measure: a finished student beside its teacher, and the text they are held to."""

from dataclasses import dataclass

import torch

from ..config import Config
from ..data import Corpus
from ..flexformer.model import Flexformer
from ..rundir import RunDirectory
from ..task import Task
from ..teacher import Teacher


class NotMeasured(Exception):
    """A section has nothing to measure here, and why: for the report to say."""


@dataclass
class Subject:
    """device: where the run computes."""

    teacher: Teacher
    student: Flexformer
    corpus: Corpus
    config: Config
    run: RunDirectory
    device: torch.device

    @property
    def task(self) -> Task:
        return self.teacher.task

    @property
    def domains(self) -> list[str]:
        return list(self.corpus.validation)
