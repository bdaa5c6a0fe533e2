"""Tiny students of two families and several mixers, random, all in float64."""

from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.model import FlexformerForCausalLM

from . import kernels
from .examples import PLAIN, randomise

VOCABULARY = 50
#: No token ends a text, and weights are large enough that the model does not repeat itself.
COMMON = {"vocab_size": VOCABULARY, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}

#: Grouped queries and rotary positions.
LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.5,
    **COMMON,
)
#: Learned positions, one joint projection, and a scaling that differs by layer.
GPT2 = GPT2Config(
    n_embd=16,
    n_layer=2,
    n_head=4,
    n_positions=128,
    initializer_range=0.5,
    scale_attn_by_inverse_layer_idx=True,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    **COMMON,
)

SPECTRAL = {"map": "spectral", "features": 12, "frequency_scale": 1.0, "amplitude_scale": 1.0}
FOURIER = {"map": "stationary", "features": 12, "frequency_scale": 1.0, "positive": False, "order": 1}
PRODUCTS = {"map": "nonstationary", "features": 18, "frequency_scale": 1.0, "positive": True, "order": 2}


class Kind(NamedTuple):
    """Configuration, mixer, where the attention modules are, how many key-value heads they have, which are exact."""

    config: PretrainedConfig
    mixer: dict[str, Any]
    module: str
    kv_heads: int
    exact: list[int]


#: Between them every part: key weight, decay, the delta rule, norm, window, a map of positions, and exact layers.
KINDS = {
    "llama": Kind(
        LLAMA,
        PLAIN | SPECTRAL | {"key_weight": "quadratic", "window": 3, "decay": "gated", "decay_groups": 2},
        "model.layers.{}.self_attn",
        2,
        [],
    ),
    "gpt2": Kind(GPT2, PLAIN | PRODUCTS | {"key_weight": "linear"}, "transformer.h.{}.attn", 4, []),
    "half exact": Kind(
        LLAMA, PLAIN | {"map": "cosformer", "horizon": 200, "window": 2}, "model.layers.{}.self_attn", 2, [0]
    ),
    "delta": Kind(
        LLAMA,
        PLAIN | FOURIER | {"decay": "delta", "window": 3},
        "model.layers.{}.self_attn",
        2,
        [],
    ),
    "retnet": Kind(
        GPT2, PLAIN | {"map": "identity", "decay": "fixed", "normaliser": "norm"}, "transformer.h.{}.attn", 4, [1]
    ),
}
#: The closed forms of their kernels.
KERNELS = {
    "llama": kernels.spectral,
    "gpt2": kernels.nonstationary_product,
    "half exact": kernels.cosformer,
    "delta": kernels.stationary,
    "retnet": kernels.identity,
}


def student(name: str, seed: int = 0, exact: list[int] | None = None) -> FlexformerForCausalLM:
    kind = KINDS[name]
    layers = [{"module": kind.module.format(i), "heads": 4, "kv_heads": kind.kv_heads, "head_dim": 4} for i in range(2)]
    kept = kind.exact if exact is None else exact
    torch.manual_seed(seed)
    config = FlexformerConfig(kind.config.to_dict(), kind.mixer, layers, kept)
    made = FlexformerForCausalLM(config).double().eval()
    for drawn in made.mixers.values():
        randomise(drawn)
    return made


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str, batch: int, length: int) -> torch.Tensor | None:
    """Row b misses b tokens on its `side`."""
    if side == "none":
        return None
    present = torch.arange(length)[None] >= torch.arange(batch)[:, None]
    return (present if side == "left" else present.flip(1)).long()
