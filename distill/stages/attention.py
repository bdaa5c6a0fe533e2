"""Stage 1: each layer's mixer is fitted to its own layer's attention map, all layers from one teacher pass."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import config, ranks
from ..capture import Heads
from ..flexformer.engine import chosen
from ..flexformer.token_mixer import TokenMixer
from ..maploss import layer_kl, negative_share, output_gap
from ..teacher import Teacher
from .graphs import Inputs, Loss
from .stage import Stage, warmup_linear


class AttentionStage(Stage):
    """Trains mixers on the teacher's own queries, keys and values; no copy of the student takes part."""

    def __init__(self, teacher: Teacher, mixers: dict[int, TokenMixer], wanted: config.Attention):
        super().__init__()
        self.teacher, self.wanted = teacher, wanted
        self.layers, self.mixers = list(mixers), nn.ModuleList(mixers.values())

    def running(self) -> list[nn.Module]:
        return [self.teacher.model]

    def inputs(self, batch: Inputs) -> Inputs:
        mine, queries = super().inputs(batch), self.draw_queries(batch["input_ids"].shape[1])
        return mine if queries is None else mine | {"queries": queries.to(self.device, non_blocking=True)}

    def compute(self, inputs: Inputs) -> Loss:
        every = self.teacher.heads(inputs, max(self.layers) + 1)
        heads, queries = [every[layer] for layer in self.layers], inputs.get("queries")
        with torch.autocast(self.device.type, enabled=False):
            layers = [self.layer_loss(mixer, each, queries) for mixer, each in zip(self.mixers, heads, strict=True)]
        losses = torch.stack(layers)
        parts = {f"layer {i}": loss for i, loss in zip(self.layers, losses.detach(), strict=True)}
        # A sum, although layers differ by orders of magnitude: no parameter belongs to two layers, and Adam divides
        # every gradient by its own size. What couples layers is the clipping, which is by their common norm.
        return Loss(losses.sum(), parts)

    def draw_queries(self, length: int) -> Tensor | None:
        """The positions whose attention is compared in this step: an unbiased sample of all, sorted; None for all."""
        if self.wanted.queries is None or self.wanted.queries >= length:
            return None
        return torch.randperm(length)[: self.wanted.queries].sort().values

    def layer_loss(self, mixer: Any, heads: Heads, queries: Tensor | None) -> Tensor:
        """Mean over heads, queries and batch of the loss of one layer."""
        if not mixer.comparable:
            # log A is undefined: there are no weights that sum to one, or some are not above 0.
            loss = self.output_loss(mixer, heads)
            if mixer.averages:
                weights = mixer.scores(heads.query, heads.key, heads.scaling, heads.padding)
                share = negative_share(weights, heads.padding).mean()
                loss = loss + self.wanted.negative * over_all(share, heads)
            return loss
        loss = torch.zeros((), device=self.device)
        if self.wanted.loss in ("kl", "both"):
            loss = loss + over_all(layer_kl(mixer, heads, queries).mean(), heads, queries)
        if self.wanted.loss in ("output", "both"):
            loss = loss + self.output_loss(mixer, heads)
        return loss

    def output_loss(self, mixer: TokenMixer, heads: Heads) -> Tensor:
        """‖PV − o‖² / ‖PV‖², both of the whole batch, mean over heads."""
        apart, size = output_gap(mixer, heads)
        return (apart / ranks.average(size)).mean()

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=self.wanted.learning_rate)
        return warmup_linear(optimizer, self.wanted.max_steps, self.wanted.warmup)

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)


def over_all(mean: Tensor, heads: Heads, queries: Tensor | None = None) -> Tensor:
    """A mean over queries that are no padding, of which devices have different numbers."""
    if (padding := heads.padding) is None:
        return mean
    return ranks.weighted(mean, lambda: chosen(padding[:, None] != 0, queries))
