"""Attention as its definition says it: loops over queries and keys, the kernel in closed form, nothing shared."""

from collections.abc import Callable

import torch
from torch import Tensor

from distill.flexformer.mixer import Mixer


def log_weight(mixer: Mixer, g: int, k: Tensor) -> Tensor:
    """w(k) = u·k + c·k², as far as the mixer has coefficients."""
    terms = [c[g] @ k**power for c, power in zip(mixer.key_weight.coefficients, (1, 2), strict=False)]
    return sum(terms, torch.zeros((), dtype=k.dtype))


@torch.no_grad()
def attention(
    mixer: Mixer,
    kernel: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None = None,
    *,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """o_i = Σ_{j ≤ i} e^{w_j} κ_ij v_j / Σ_{j ≤ i} e^{w_j} κ_ij, and which rows are far from a zero denominator."""
    batch, heads, length, _ = query.shape
    group = heads // key.shape[1]
    root = scaling**0.5
    out, trusted = torch.zeros_like(query), torch.ones(batch, heads, length, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            g = h // group
            keys = key[b, g] * root
            weights = [torch.exp(log_weight(mixer, g, k)) for k in keys]
            for i in range(length):
                seen = [j for j in range(i + 1) if padding is None or padding[b, j]]
                if not seen:
                    continue
                q = query[b, h, i] * root
                s = torch.stack([weights[j] * kernel(mixer.map, h, g, q, keys[j]) for j in seen])
                out[b, h, i] = s @ value[b, g, seen] / s.sum()
                trusted[b, h, i] = s.sum().abs() > 1e-3 * s.abs().sum().clamp(min=max(weights[j] for j in seen))
    return out, trusted
