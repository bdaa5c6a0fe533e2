"""Attention that costs next to nothing: what a step still takes with it, hardly any attention can make faster.

    o_i = q_i + k_i + v_i

Of q and k, too, so that gradients go back through all products that a model has.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from .unmasked import no_mask

#: The name that a model is loaded with.
FREE = "distill_free"


def added(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **others: Any
) -> tuple[Tensor, None]:
    """q (B, H, N, D), k and v (B, K, N, ·) → o (B, N, H, V). Where rows of q and k are longer than those of v, as
    DeepSeek has them, the rest of them is left out."""
    width, group = value.shape[-1], query.shape[1] // key.shape[1]
    shared = (key[..., :width] + value).repeat_interleave(group, 1)
    return (query[..., :width] + shared).transpose(1, 2).contiguous(), None


AttentionInterface.register(FREE, added)
AttentionMaskInterface.register(FREE, no_mask)
