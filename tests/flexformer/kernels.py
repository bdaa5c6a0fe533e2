"""Closed forms of the kernels, read off the docstrings: one query q (D), one key k (D), no features in between.

h is the query head, g the key-value head that it reads, i and j are the positions of q and k. Each gives what its
atoms contribute (M,), in their order: the kernel is the sum.
"""

import math

import torch
from torch import Tensor


def stationary(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return torch.stack([torch.cos(omega @ (q - k)) for omega in m.frequency[g]]) / len(m.frequency[g])


def nonstationary(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    """Yaglom: mean_m ¼ Σ_{a, b ∈ {ω₁, ω₂}} cos(a·q − b·k)."""
    pairs = [torch.stack(pair) for pair in zip(m.frequency[g], m.partner[g], strict=True)]
    return torch.stack([sum(torch.cos(pair @ q - b @ k).mean() / 2 for b in pair) for pair in pairs]) / len(pairs)


def stationary_product(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return _product(m, h, g, m.key_frequency[g] @ (q - k))


def nonstationary_product(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return _product(m, h, g, m.query_frequency[h] @ q - m.key_frequency[g] @ k + m.phase[h])


def _product(m, h: int, g: int, angle: Tensor) -> Tensor:
    """a_m Π_g [1 + η_mg cos(angle_mg)], factors of one atom side by side."""
    eta = 0.95 / (1 + torch.exp(-m.raw_depth[g]))
    a = m.amplitude[h].exp() / m.amplitude[h].exp().sum()
    order = len(angle) // len(a)
    terms = list(a)
    for n in range(len(angle)):
        terms[n // order] = terms[n // order] * (1 + eta[n] * torch.cos(angle[n]))
    return torch.stack(terms)


def exponential(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    s = torch.exp(m.query_frequency[h] @ q + m.query_bias[h])
    t = torch.exp(m.key_frequency[g] @ k + m.key_bias[g])
    return s * t / (s.sum() * t.sum())


def spectral(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    count = len(m.raw_depth[g])
    s = torch.exp(m.query_frequency[h, :count] @ q + m.query_bias[h, :count])
    t = torch.exp(m.key_frequency[g, :count] @ k + m.key_bias[g])
    eta = 0.95 / (1 + torch.exp(-m.raw_depth[g]))
    omega, nu, beta = m.query_frequency[h, count:], m.key_frequency[g, count:], m.query_bias[h, count:]
    wave = 1 + eta * torch.cos(omega @ q - nu @ k + beta)
    return s * t * wave / (s.sum() * t.sum())


def favor(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    terms = [torch.exp(omega @ (q + k) - (q @ q + k @ k) / 2) for omega in m.frequency[g]]
    return torch.stack(terms) / len(terms)


def rfa(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    difference = m.scale[g] * (q / q.norm() - k / k.norm())
    return torch.stack([torch.cos(omega @ difference) for omega in m.frequency[g]]) / len(m.frequency[g])


def hedgehog(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    s = torch.exp(m.query_projection[h] @ q + m.query_bias[h])
    t = torch.exp(m.key_projection[g] @ k + m.key_bias[g])
    return s * t / (s.sum() * t.sum()) + 1 / (s * t) / ((1 / s).sum() * (1 / t).sum())


def t2r(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    s = m.query_projection[h] @ q + m.query_bias[h]
    t = m.key_projection[g] @ k + m.key_bias[g]
    return _rectified(s, t)


def cosformer(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return _rectified(q, k) * math.cos(math.pi * (i - j) / (2 * m.horizon))


def _rectified(s: Tensor, t: Tensor) -> Tensor:
    """relu(s) relu(t), each with its floor."""
    return (s * (s > 0) + 1e-6) * (t * (t > 0) + 1e-6)


def elu(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return (torch.nn.functional.elu(q) + 1) * (torch.nn.functional.elu(k) + 1)


def identity(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return q * k


def constant(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return torch.ones_like(q[:1])


def zero(m, h: int, g: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
    return torch.zeros_like(q[:1])
