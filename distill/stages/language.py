"""Training a softmax model on text: how a teacher is made, and the control that a student is held against."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .. import config
from ..task import DECODER, Task
from .graphs import Inputs, Loss
from .stage import Stage, embeddings, of_all, recompute, warmup_linear


class LanguageStage(Stage):
    """Cross-entropy of what the task predicts, mean over its targets. Weight decay on matrices alone."""

    def __init__(self, model: PreTrainedModel, wanted: config.Pretrain, task: Task = DECODER):
        super().__init__()
        self.model, self.wanted, self.task = model.requires_grad_(True).train(), wanted, task
        if wanted.gradient_checkpointing:
            recompute(self.model)

    def compute(self, inputs: Inputs) -> Loss:
        found = self.task.predict(self.model, inputs)
        loss = of_all(self.task.loss(found, inputs), inputs, lambda: self.task.counted(found, inputs))
        return Loss(loss, {self.task.predicted: loss.detach()})

    def models(self) -> list[nn.Module]:
        return [self.model]

    def configure_optimizers(self) -> Any:
        tokens, decay = embeddings(self.model), self.wanted.weight_decay
        rest = [each for each in self.model.parameters() if each not in tokens]
        groups = [
            {"params": list(tokens), "weight_decay": decay, "lr": self.wanted.embedding_learning_rate},
            {"params": [each for each in rest if each.dim() >= 2], "weight_decay": decay},
            {"params": [each for each in rest if each.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.wanted.learning_rate, betas=(0.9, 0.95))
        return warmup_linear(optimizer, self.wanted.max_steps, self.wanted.warmup)
