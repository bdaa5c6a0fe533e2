"""From the hidden states of a text's tokens to its embedding."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize as to_length_one


def mean(hidden: Tensor, real: Tensor) -> Tensor:
    """Σ_n r_n h_n / Σ_n r_n."""
    return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def first(hidden: Tensor, real: Tensor) -> Tensor:
    """h_n of the first token that is no padding."""
    return hidden[torch.arange(len(hidden), device=hidden.device), real.argmax(1)]


#: How hidden states (B, N, D) become embeddings (B, D), by sentence-transformers' name of it.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "cls": first}


def pooled(hidden: Tensor, attention_mask: Tensor | None, mode: str, normalize: bool) -> Tensor:
    """Embeddings (B, D) of texts (B, N, D), in float32 at least; attention_mask (B, N) is 0 at padding.

    normalize: each of length 1.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    real = torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else (attention_mask != 0)
    embedding = POOLINGS[mode](hidden, real.to(hidden.dtype))
    return to_length_one(embedding, dim=-1) if normalize else embedding
