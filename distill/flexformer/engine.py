"""Linear attention in three ways that agree: parallel (reference), chunked (training, prefill), recurrent (decoding).

    S_ij = e^{w_j − m_i} φ_q(q_i)·φ_k(k_j)   for j ≤ i        o_i = Σ_j S_ij v_j / z_i,   z_i = Σ_j S_ij

w is the keys' log-weight, −∞ for a key that is padding, and m_i = max_{j ≤ i} w_j its running maximum, detached:
it cancels in o_i and keeps every exponential at most 1. The state after i tokens is Σ_j e^{w_j − m_i} φ_k(k_j)
[v_j, 1]ᵀ; the normaliser is its extra value column. Arithmetic is float32 at least, whatever the model runs in.

Shapes: query features (B, H, N, F), key features (B, K, N, F), log-weight (B, K, N), value (B, K, N, D).
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Stands for the maximum of no keys at all: finite, so that differences of it are.
NO_KEYS = -1e30


class Features(NamedTuple):
    """What a mixer makes of queries and keys: φ_q, φ_k, w, and the ε of the denominator rule."""

    query: Tensor
    key: Tensor
    log_weight: Tensor
    epsilon: float


class State(NamedTuple):
    """All that decoding remembers of a layer, whatever the length: sums (B, K, F, D+1) and maximum (B, K)."""

    sums: Tensor
    maximum: Tensor


def empty_state(features: Features, value: Tensor) -> State:
    batch, heads, _, feature_dim = features.key.shape
    sums = features.key.new_zeros(batch, heads, feature_dim, value.shape[-1] + 1)
    return State(sums, features.key.new_full((batch, heads), NO_KEYS))


def kernel(features: Features) -> Tensor:
    """κ_ij = φ_q(q_i)·φ_k(k_j) for all i and j: (B, K, H/K, N, N)."""
    return _grouped(features.query, features.key) @ features.key[:, :, None].mT


def scores(features: Features) -> Tensor:
    """S, 0 for j > i: (B, K, H/K, N, N)."""
    log_weight = features.log_weight
    gap = log_weight[..., None, :] - _running_maximum(log_weight, None)[..., :, None]
    gap = gap.masked_fill(future(gap.shape[-1], gap.device), -torch.inf)
    return kernel(features) * gap.exp()[:, :, None]


def parallel(features: Features, value: Tensor) -> Tensor:
    """The reference: o (B, H, N, D) through the whole N × N matrix."""
    return divide(scores(features) @ with_ones(value)[:, :, None], features.epsilon).flatten(1, 2)


def chunked(features: Features, value: Tensor, state: State | None = None, chunk: int = 64) -> tuple[Tensor, State]:
    """Explicit inside chunks of `chunk` tokens, through the state between them: O(N). Returns o and the state."""
    length = value.shape[2]
    state = state or empty_state(features, value)
    query, key, log_weight, values = _in_chunks(features, value, chunk)

    maximum = _running_maximum(log_weight.flatten(2), state.maximum).unflatten(2, (-1, chunk))
    last = maximum[..., -1]
    before = torch.cat([state.maximum[..., None], last[..., :-1]], -1)

    weighted = key * (log_weight - last[..., None]).exp()[..., None]
    states, sums = _scan(weighted.mT @ values, (before - last).exp(), state.sums)

    gap = (log_weight[..., None, :] - maximum[..., :, None]).masked_fill(future(chunk, key.device), -torch.inf)
    near = (query @ key[:, :, None].mT * gap.exp()[:, :, None]) @ values[:, :, None]
    far = query * (before[..., None] - maximum).exp()[:, :, None, ..., None] @ states[:, :, None]
    out = divide(near + far, features.epsilon)
    return out.flatten(3, 4).flatten(1, 2)[:, :, :length], State(sums, last[..., -1])


def recurrent(features: Features, value: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Token after token through the state, as in decoding. Returns o and the state."""
    sums, maximum = state or empty_state(features, value)
    query, key, log_weight, epsilon = features
    query, values, outputs = _grouped(query, key), with_ones(value), []
    for i in range(value.shape[2]):
        previous, maximum = maximum, torch.maximum(maximum, log_weight[:, :, i].detach())
        new = (key[:, :, i] * (log_weight[:, :, i] - maximum).exp()[..., None])[..., None] * values[:, :, i, None]
        sums = sums * (previous - maximum).exp()[..., None, None] + new
        outputs.append(divide(query[:, :, :, i] @ sums, epsilon))
    return torch.stack(outputs, 3).flatten(1, 2), State(sums, maximum)


def divide(weighted: Tensor, epsilon: float) -> Tensor:
    """[Σ S v, z] (…, D+1) → Σ S v / z, with |z| < ε replaced by ±ε; a row without keys gives 0."""
    numerator, z = weighted[..., :-1], weighted[..., -1:]
    return numerator / torch.where(z.abs() >= epsilon, z, torch.copysign(torch.full_like(z, epsilon), z))


def with_ones(value: Tensor) -> Tensor:
    """[v, 1]: the normaliser as an extra value column."""
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def _grouped(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, …) → (B, K, G, …): the query heads that share a key-value head side by side."""
    return query.unflatten(1, (key.shape[1], -1))


def future(length: int, device: torch.device) -> Tensor:
    """(N, N), true for j > i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def _running_maximum(log_weight: Tensor, start: Tensor | None) -> Tensor:
    maximum = log_weight.detach().cummax(-1).values
    return maximum.clamp(min=NO_KEYS) if start is None else torch.maximum(maximum, start[..., None])


def _in_chunks(features: Features, value: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad to a multiple of `chunk` with keys of weight −∞ and split: (B, K, [G,] N/chunk, chunk, …)."""
    pad = -value.shape[2] % chunk
    longer = (0, 0, 0, pad)
    query = torch.nn.functional.pad(_grouped(features.query, features.key), longer).unflatten(3, (-1, chunk))
    key = torch.nn.functional.pad(features.key, longer).unflatten(2, (-1, chunk))
    values = torch.nn.functional.pad(with_ones(value), longer).unflatten(2, (-1, chunk))
    log_weight = torch.nn.functional.pad(features.log_weight, (0, pad), value=-torch.inf)
    return query, key, log_weight.unflatten(2, (-1, chunk)), values


def _scan(local: Tensor, decay: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """state_c = decay_c · state_{c−1} + local_c: the states before each chunk (B, K, C, F, D+1), and the last one."""
    before, state = [], start
    for c in range(local.shape[2]):
        before.append(state)
        state = state * decay[:, :, c, None, None] + local[:, :, c]
    return torch.stack(before, 2), state
