"""Texts as vectors: the task of a sentence-embedding model, whose training data are texts that belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..flexformer.pooling import pooled
from . import pooling
from .batches import Batch
from .task import Task

#: What cosines are divided by before they are logits: contrastive training's usual value.
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Embedding(Task):
    """A batch is B texts and then the partner of each; a prediction is all their embeddings (2B, D)."""

    def predict(self, model: Any, batch: Batch) -> Tensor:
        hidden = model(**self.inputs(batch)).last_hidden_state
        return pooled(hidden, batch["attention_mask"], **told(model).sentence_pooling)

    def gap(self, teacher: Tensor, student: Tensor, batch: Batch, temperature: float) -> Tensor:
        """‖t − s‖² / ‖t‖² of the embeddings, mean over texts: a student at 0 fits an index that the teacher made."""
        far = (teacher - student).square().sum(-1) / teacher.square().sum(-1).clamp(min=1e-30)
        return far.mean()

    def cosine(self, teacher: Tensor, student: Tensor) -> Tensor:
        return cosine_similarity(teacher, student, dim=-1).unflatten(0, (2, -1)).mean(0)

    def complete(self, model: Any, path: str | None) -> None:
        model.config.sentence_pooling = dict(pooling.PLAIN) if path is None else pooling.read(path)
        model.config.sentence_use = None if path is None else pooling.use(path)

    def save_beside(self, model: Any, folder: Path, context: int) -> None:
        said = told(model)
        pooling.save(folder, said.sentence_pooling, said.sentence_use, said.hidden_size, context)


def told(model: Any) -> Any:
    """The configuration of a teacher, or of what a student was made of."""
    return getattr(model, "lm", model).config


def partners(embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """cos(text, other) / TEMPERATURE of every text and all partners in the batch (B, 1, B), and its own (B, 1)."""
    # Differences of cosines are small beside the steps of bfloat16.
    with torch.autocast(embeddings.device.type, enabled=False):
        texts, others = normalize(embeddings, dim=-1).chunk(2)
        cosines = texts @ others.T
    return cosines[:, None] / TEMPERATURE, torch.arange(len(cosines), device=cosines.device)[:, None]
