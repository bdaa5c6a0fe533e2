"""What the sections of a report measure: a finished student beside its teacher, and the text they are held to."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

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

    def held_out(self, domain: str, blocks: int) -> DataLoader:
        """At most so many blocks of a domain's held-out text; of rows with one target each, a batch for each block."""
        size = self.config.measure.batch_size
        return self.corpus.evaluation(domain, size, blocks * size if self.task.scored else blocks)

    @property
    def domains(self) -> list[str]:
        return list(self.corpus.validation)
