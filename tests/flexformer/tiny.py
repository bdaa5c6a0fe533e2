"""Tiny students of two families, their mixers random, all in float64."""

import torch
from transformers import GPT2Config, LlamaConfig

from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.model import FlexformerForCausalLM

from .examples import randomise

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
PRODUCTS = {"map": "nonstationary", "features": 18, "frequency_scale": 1.0, "positive": True, "order": 2}

#: By family: configuration, mixer, where the attention modules are, and how many key-value heads they have.
TEACHERS = {
    "llama": (LLAMA, SPECTRAL | {"key_weight": "quadratic"}, "model.layers.{}.self_attn", 2),
    "gpt2": (GPT2, PRODUCTS | {"key_weight": "linear"}, "transformer.h.{}.attn", 4),
}


def student(family: str, seed: int = 0) -> FlexformerForCausalLM:
    config, mixer, module, kv_heads = TEACHERS[family]
    layers = [{"module": module.format(i), "heads": 4, "kv_heads": kv_heads, "head_dim": 4} for i in range(2)]
    torch.manual_seed(seed)
    made = FlexformerForCausalLM(FlexformerConfig(config.to_dict(), mixer, layers)).double().eval()
    for drawn in made.mixers:
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
