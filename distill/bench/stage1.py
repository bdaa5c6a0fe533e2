"""A step of stage 1 of a whole model with such layers, one text: as a run takes it, and through dense maps."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from ..capture import CAPTURE, Heads
from ..config import Attention
from ..flexformer.mixer import Mixer
from ..measure.steps import Step
from ..stages.attention import AttentionStage
from ..stages.graphs import Inputs
from ..stages.shortcuts import take
from ..stages.stage import Stage
from ..teacher import Teacher, freeze
from .layer import Layer
from .maploss import Loss, dense
from .maploss import floor as floor_of_maps

#: Layers of the model, as GPT-2 small has them; its words are not looked at.
LAYERS, WORDS = 12, 64
#: What a run computes in beside weights of float32.
HALF = torch.bfloat16, torch.float16
WANTED = Attention(
    max_steps=1, batch_size=1, place=False, learning_rate=1e-2, warmup=0.0, loss="kl", queries=None, negative=0.0
)


class DenseStage(AttentionStage):
    """What stage 1 computes, a whole map of every layer in memory, and fused by the compiler on a GPU."""

    def layer_loss(self, mixer: Mixer, heads: Heads, queries: Tensor | None) -> Tensor:
        loss = fused() if heads.query.is_cuda else dense
        return loss(mixer, heads).mean()


@cache
def fused() -> Loss:
    """Made when it is needed: to load the compiler takes seconds."""
    made: Loss = torch.compile(dense, dynamic=False)
    return made


def stages(device: torch.device) -> dict[str, type[AttentionStage]]:
    """By what they are called."""
    return {"dense (compiled)" if device.type == "cuda" else "dense": DenseStage, "as a run": AttentionStage}


def floor(layer: Layer, length: int, multiplied: float, copied: float) -> float:
    """Seconds that the products of all layers' maps take, see `maploss.floor`."""
    return LAYERS * floor_of_maps(layer, length, multiplied, copied)


def teacher(layer: Layer, length: int, words: int = WORDS) -> Teacher:
    """Of no training: how long a step takes does not depend on it. Of float32, as recipes have it at this size."""
    heads, _, head_dim = layer.shape
    sizes: dict[str, Any] = {"n_layer": LAYERS, "n_head": heads, "n_embd": heads * head_dim, "n_positions": length}
    told = GPT2Config(**sizes, vocab_size=words, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(told, attn_implementation=CAPTURE, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel()))
    return freeze("gpt2", model.to(layer.device), tokenizer, torch.float32)


def step_of(stage: Stage, layer: Layer, batch: Inputs) -> Step:
    """A step of `stage` forwards and backwards, as `bf16-mixed` has it where the layer is of bfloat16."""
    take(stage.running())
    stage.steps.graphs = layer.device.type == "cuda"

    def step() -> None:
        stage.zero_grad()
        with torch.autocast(layer.device.type, layer.dtype, enabled=layer.dtype in HALF):
            loss = stage.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def ways(layer: Layer) -> dict[str, Callable[[int], Step]]:
    def make(stage: type[AttentionStage], length: int) -> Step:
        made = stage(teacher(layer, length), {i: layer.mixer() for i in range(LAYERS)}, WANTED).to(layer.device)
        batch = {"input_ids": torch.randint(WORDS, (1, length), device=layer.device)}
        return step_of(made, layer, batch)

    return {name: partial(make, stage) for name, stage in stages(layer.device).items()}


def errors(layer: Layer) -> dict[str, float]:
    """`maploss` tells those of a layer."""
    return {}
