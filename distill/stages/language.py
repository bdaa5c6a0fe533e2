"""Next-token training of a softmax model: how a teacher is made, and the control that a student is held against."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from .. import config
from .stage import Stage, warmup_cosine


class LanguageStage(Stage):
    """Cross-entropy of the next token, mean over tokens. Weight decay on matrices alone."""

    def __init__(self, model: PreTrainedModel, wanted: config.Pretrain):
        super().__init__()
        self.model, self.wanted = model.requires_grad_(True).train(), wanted

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        input_ids = batch["input_ids"]
        logits = self.model(input_ids=input_ids, use_cache=False).logits.float()
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        self.losses = {"next token": loss.detach()}
        return loss

    def configure_optimizers(self) -> Any:
        parameters = list(self.model.parameters())
        groups = [
            {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": self.wanted.weight_decay},
            {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.wanted.learning_rate, betas=(0.9, 0.95))
        return warmup_cosine(optimizer, self.wanted.max_steps, self.wanted.warmup)
