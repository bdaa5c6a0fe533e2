"""Exact softmax attention, for the layers that are kept as they were."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def is_causal(module: Any) -> bool:
    """Whether transformers lets this attention module see only what came before."""
    return getattr(module, "is_causal", True)


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, padding: Tensor | None, causal: bool = True
) -> Tensor:
    """o_i = Σ_j softmax_j(scaling q_i·k_j) v_j, over j ≤ i where it is causal: q (B, H, N, D); k, v (B, K, T, D).

    The last N of the keys are the queries' own; padding (B, T) is 0 at padding. A query that is padding itself sees
    itself: of no keys at all softmax is undefined.
    """
    length, total = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if padding is None and length in (1, total):
        # One query that comes last sees every key.
        triangle = causal and length > 1
        return scaled_dot_product_attention(query, key, value, is_causal=triangle, scale=scaling, enable_gqa=grouped)
    i, j = torch.arange(total - length, total, device=key.device)[:, None], torch.arange(total, device=key.device)
    seen = (j <= i) | (not causal)
    if padding is not None:
        seen = (seen & (padding != 0)[:, None, :] | (j == i))[:, None]
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=grouped)
