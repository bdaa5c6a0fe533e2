"""A step of stage 2 of a whole model with such layers, both ways, one text: as in a run, and in plain modules."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..config import Logits, Lora
from ..divergence import LogitKl, kls_in_parts
from ..measure.steps import Step
from ..stages.graphs import Inputs
from ..stages.logits import LogitsStage
from ..student import build_student
from .layer import Layer
from .stage1 import LAYERS, step_of, teacher

#: Words that logits are of, as many as GPT-2 has.
WORDS = 50257
WANTED = Logits(
    max_steps=1, batch_size=1, learning_rate=1e-4, mixer_learning_rate=1e-3, embedding_learning_rate=1e-4, warmup=0.0,
    weight_decay=0.0, gradient_checkpointing=False, temperature=1.0, cross_entropy=0.0, cache=None, top_k=1,
    train="all", lora=Lora(rank=1, alpha=1),
)  # fmt: skip


class Plain(LogitsStage):
    """What stage 2 computes, around mixers as they are in transformers' own modules, and logits compared by PyTorch."""

    def running(self) -> list[nn.Module]:
        return []

    def gap(self, found: Tensor, inputs: Inputs) -> Tensor:
        target = self.teacher.predict(inputs)
        gap: Tensor = LogitKl.apply(target, found, self.wanted.temperature, kls_in_parts)
        return gap


#: Stages by what they are called.
STAGES = {"plain": Plain, "as a run": LogitsStage}


def floor(layer: Layer, length: int, multiplied: float, copied: float) -> float:
    """Seconds that products with all weights take, forwards of the teacher, and both ways of the student."""
    width = layer.shape.heads * layer.shape.head_dim
    weights = LAYERS * 12 * width**2 + WORDS * width
    return (1 + 3) * 2 * weights * length / multiplied


def staged(layer: Layer, stage: type[LogitsStage], length: int) -> LogitsStage:
    taught = teacher(layer, length, WORDS)
    return stage(taught, build_student(taught, layer.options), WANTED).to(layer.device, torch.float32)


def ways(layer: Layer) -> dict[str, Callable[[int], Step]]:
    return {name: partial(timed, layer, stage, False) for name, stage in STAGES.items()}


def compiled(layer: Layer) -> dict[str, Callable[[int], Step]]:
    """As a run with `compile=true`: it takes minutes a length before there is a step."""
    return {"as a run, compiled": partial(timed, layer, LogitsStage, True)}


def timed(layer: Layer, stage: type[LogitsStage], fused: bool, length: int) -> Step:
    made = staged(layer, stage, length)
    for model in made.models() if fused else []:
        # As a run's first length is: of a model that was compiled for any length, PyTorch 2.11 made no CUDA graph.
        model.compile(dynamic=False)
    batch = {"input_ids": torch.randint(WORDS, (1, length), device=layer.device)}
    return step_of(made, layer, batch)


def errors(layer: Layer) -> dict[str, float]:
    """Losses are those of a run, which its tests hold against the formula."""
    return {}
