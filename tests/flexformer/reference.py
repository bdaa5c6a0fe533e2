"""Attention as its definition says it: loops over queries and keys, every part in closed form, nothing shared."""

from collections.abc import Callable

import torch
from torch import Tensor

from distill.flexformer.decay import DeltaDecay, FixedDecay, GatedDecay, LearnedDecay, NoDecay, SelectiveDecay
from distill.flexformer.mixer import Mixer


def step(m, g: int, k: Tensor) -> Tensor:
    """Δ = softplus(u·k + b) of a selective decay."""
    return torch.log1p(torch.exp(m.direction[g] @ k + m.bias[g]))


def share(m, g: int, k: Tensor) -> Tensor:
    """β = σ(s·k + c) of the delta rule."""
    return 1 / (1 + torch.exp(-(m.share_direction[g] @ k + m.share_bias[g])))


#: γ (R,) by which key k fades all that came before it, by the form of the decay.
GAMMAS: dict[type, Callable[..., Tensor]] = {
    NoDecay: lambda m, g, k: torch.ones(1, dtype=k.dtype),
    FixedDecay: lambda m, g, k: torch.tensor([1 - 2.0 ** (-5 - g)], dtype=k.dtype),
    LearnedDecay: lambda m, g, k: torch.exp(-torch.exp(m.log_rate[g])),
    GatedDecay: lambda m, g, k: (1 / (1 + torch.exp(-(m.direction[g] @ k + m.bias[g])))) ** (1 / 16),
    SelectiveDecay: lambda m, g, k: torch.exp(-torch.exp(m.log_rate[g]) * step(m, g, k))[None],
    DeltaDecay: lambda m, g, k: torch.exp(-step(m, g, k))[None],
}


def key_factor(mixer: Mixer, g: int, k: Tensor) -> Tensor:
    """e^{w(k)}, w(k) = u·k + c·k² as far as the mixer has coefficients; times Δ where the decay is selective."""
    terms = [c[g] @ k**power for c, power in zip(mixer.key_weight.coefficients, (1, 2), strict=False)]
    factor = torch.exp(sum(terms, torch.zeros((), dtype=k.dtype)))
    return factor * step(mixer.decay, g, k) if isinstance(mixer.decay, SelectiveDecay) else factor


def opening(mixer: Mixer, h: int, q: Tensor) -> Tensor:
    """e^{gate(q)}, gate(q) = b + u·q + c·q²: the linear part's factor beside a window."""
    if mixer.window is None:
        return torch.ones((), dtype=q.dtype)
    u, c = mixer.window.coefficients
    return torch.exp(mixer.window.bias[h] + u[h] @ q + c[h] @ q**2)


@torch.no_grad()
def scores(
    mixer: Mixer, kernel: Callable[..., Tensor], h: int, q: Tensor, keys: Tensor, present: list[bool], i: int
) -> tuple[Tensor, Tensor]:
    """S_ij of query i of head h, for j ≤ i; and what they would be at most, were every kernel that is not nought 1.

    Inside the window exp(q·k); beyond it e^{gate(q)} L_ij e^{w_j} κ_ij, where keys have decayed since they left it.
    """
    g, width = h // mixer.shape.group, mixer.width
    found, most = torch.zeros(i + 1, dtype=q.dtype), torch.zeros(i + 1, dtype=q.dtype)
    position = [sum(present[: j + 1]) - 1 for j in range(i + 1)]
    for j in range(i + 1):
        if present[j] and j > i - width:
            found[j] = most[j] = torch.exp(q @ keys[j])
        elif present[j]:
            faded = GAMMAS[NoDecay](None, g, q).expand(mixer.groups).clone()
            for t in range(j + 1, i - width + 1):
                if present[t]:
                    faded *= GAMMAS[type(mixer.decay)](mixer.decay, g, keys[t])
            kappa = kernel(mixer.map, h, g, q, keys[j], position[i], position[j]).unflatten(0, (mixer.groups, -1))
            factor = opening(mixer, h, q) * key_factor(mixer, g, keys[j])
            found[j] = factor * (faded * kappa.sum(1)).sum()
            most[j] = factor * faded.max() * kappa.any()
    return found, most


def normalise(mixer: Mixer, h: int, s: Tensor, most: Tensor, values: Tensor) -> tuple[Tensor, bool]:
    """o_i, and whether it is far from a division by almost nothing."""
    if not s.any():
        return torch.zeros_like(values[0]), True
    if mixer.normaliser.averages:
        z = s.sum()
        return s @ values / z, bool(z.abs() > 1e-3 * s.abs().sum() and z.abs() > mixer.map.epsilon * most.max())
    y = s @ values / most.max()
    out = mixer.normaliser.gain[h] * y / torch.sqrt((y @ y) / len(y) + 1e-6)
    return out, bool(y.norm() > 1e-3 * (s.abs() @ values.abs() / most.max()).norm())


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
    """o (B, H, N, D), and which rows are far from a zero denominator."""
    if isinstance(mixer.decay, DeltaDecay):
        return delta_rule(mixer, query * scaling**0.5, key * scaling**0.5, value, padding)
    batch, heads, length, _ = query.shape
    root = scaling**0.5
    out, trusted = torch.zeros_like(query), torch.ones(batch, heads, length, dtype=torch.bool)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, length))).tolist():
        g = h // mixer.shape.group
        present = [True] * length if padding is None else padding[b].bool().tolist()
        s, most = scores(mixer, kernel, h, query[b, h, i] * root, key[b, g] * root, present, i)
        out[b, h, i], trusted[b, h, i] = normalise(mixer, h, s, most, value[b, g, : i + 1])
    return out, trusted


@torch.no_grad()
def delta_rule(
    mixer: Mixer, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_i = γ_i (I − β_i φ φᵀ) S_{i−1} + β_i φ [v_i, 1]ᵀ, whole matrices multiplied out; the window beside it."""
    batch, heads, length, _ = query.shape
    present = torch.ones(batch, length) if padding is None else padding
    position = present.cumsum(1).long() - 1
    phi_q, (phi_k, _) = mixer.map.query_features(query, position), mixer.map.key_features(key, position)
    out, trusted = torch.zeros_like(query), torch.ones(batch, heads, length, dtype=torch.bool)
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)).tolist():
        g, begun = h // mixer.shape.group, False
        state = torch.zeros(phi_k.shape[-1], value.shape[-1] + 1, dtype=value.dtype)
        decay = mixer.decay
        for i in range(length):
            j = i - mixer.width
            if j >= 0 and present[b, j]:
                phi, k = phi_k[b, g, j] / phi_k[b, g, j].norm(), key[b, g, j]
                beta = share(decay, g, k)
                gone = GAMMAS[DeltaDecay](decay, g, k) * (torch.eye(len(phi)) - beta * torch.outer(phi, phi))
                written = torch.cat([value[b, g, j], value.new_ones(1)])
                state, begun = gone @ state + beta * torch.outer(phi, written), True
            q = query[b, h, i]
            *read, met = (phi_q[b, h, i] / phi_q[b, h, i].norm()) @ state
            voice, known = mixer.reading, torch.tanh(met)
            loud = torch.exp(voice.bias[h] + voice.direction[h] @ q + voice.louder[h] * known)
            weight = opening(mixer, h, q) * begun
            if voice.heavier is not None:
                weight = weight * torch.exp(voice.heavier[h] * known)
            near = [t for t in range(max(0, j + 1), i + 1) if present[b, t]]
            weights = torch.stack([torch.exp(q @ key[b, g, t]) for t in near] + [weight])
            y = weights @ torch.stack([*(value[b, g, t] for t in near), loud * torch.stack(read)])
            if mixer.normaliser.averages:
                out[b, h, i] = y / weights.sum() if weights.any() else 0 * y
            else:
                # The norm's ε is relative to the largest weight.
                y = y / weights.max().clamp(min=1e-300)
                out[b, h, i] = mixer.normaliser.gain[h] * y / torch.sqrt(y @ y / len(y) + 1e-6)
                trusted[b, h, i] = bool(y.norm() > 1e-3)
    return out, trusted


@torch.no_grad()
def softmax(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None, *, scaling: float) -> Tensor:
    """Causal softmax attention of queries at the end of the keys, in loops; padding sees itself besides."""
    batch, heads, length, _ = query.shape
    before, group = key.shape[2] - length, heads // key.shape[1]
    out = torch.zeros_like(query)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, length))).tolist():
        seen = [j for j in range(before + i + 1) if padding is None or padding[b, j] or j == before + i]
        weights = torch.stack([torch.exp(scaling * (query[b, h, i] @ key[b, h // group, j])) for j in seen])
        out[b, h, i] = weights @ value[b, h // group, seen] / weights.sum()
    return out
