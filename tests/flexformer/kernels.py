"""Closed forms of the kernels, read off the docstrings: one query q (D), one key k (D), no features in between.

h is the query head, g the key-value head that it reads.
"""

import torch
from torch import Tensor


def stationary(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    return torch.stack([torch.cos(omega @ (q - k)) for omega in m.frequency[g]]).mean()


def nonstationary(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    """Yaglom: mean_m ¼ Σ_{a, b ∈ {ω₁, ω₂}} cos(a·q − b·k)."""
    pairs = [torch.stack(pair) for pair in zip(m.frequency[g], m.partner[g], strict=True)]
    return torch.stack([torch.cos(pair @ q - b @ k) for pair in pairs for b in pair]).mean()


def stationary_product(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    return _product(m, h, g, m.key_frequency[g] @ (q - k))


def nonstationary_product(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    return _product(m, h, g, m.query_frequency[h] @ q - m.key_frequency[g] @ k + m.phase[h])


def _product(m, h: int, g: int, angle: Tensor) -> Tensor:
    """Σ_m a_m Π_g [1 + η_mg cos(angle_mg)], factors of one atom side by side."""
    eta = 0.95 / (1 + torch.exp(-m.raw_depth[g]))
    a = m.amplitude[h].exp() / m.amplitude[h].exp().sum()
    order = len(angle) // len(a)
    total = torch.zeros(())
    for atom in range(len(a)):
        term = a[atom]
        for n in range(atom * order, (atom + 1) * order):
            term = term * (1 + eta[n] * torch.cos(angle[n]))
        total = total + term
    return total


def exponential(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    s = torch.exp(m.query_frequency[h] @ q + m.query_bias[h])
    t = torch.exp(m.key_frequency[g] @ k + m.key_bias[g])
    return (s @ t) / (s.sum() * t.sum())


def spectral(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    count = len(m.raw_depth[g])
    s = torch.exp(m.query_frequency[h, :count] @ q + m.query_bias[h, :count])
    t = torch.exp(m.key_frequency[g, :count] @ k + m.key_bias[g])
    eta = 0.95 / (1 + torch.exp(-m.raw_depth[g]))
    omega, nu, beta = m.query_frequency[h, count:], m.key_frequency[g, count:], m.query_bias[h, count:]
    wave = 1 + eta * torch.cos(omega @ q - nu @ k + beta)
    return (s * t * wave).sum() / (s.sum() * t.sum())


def favor(m, h: int, g: int, q: Tensor, k: Tensor) -> Tensor:
    return torch.stack([torch.exp(omega @ (q + k) - (q @ q + k @ k) / 2) for omega in m.frequency[g]]).mean()
