"""Linear attention in three ways that agree: parallel (reference), chunked (training, prefill), recurrent (decoding).

    S_ij = Σ_r L^r_ij e^{w_j} φ^r_q(q_i)·φ^r_k(k_j)  for j ≤ i,   L^r_ij = Π_{t=j+1..i} γ^r_t,   o_i = Σ_j S_ij [v_j, 1]

w is the keys' log-weight, −∞ for a key that is padding; the features fall into R groups of equal size, each with a
decay γ^r of its own. All that is computed is o_i e^{−s_i}: the shift s_i = max_r m^r_i is the largest of the running
maxima m^r_i = max(m^r_{i−1} + log γ^r_i, w_i), detached, so that no exponential passes 1; what normalises o_i cancels
it. The last column of o_i is the sum of the weights. The state after i tokens is, group by group,
Σ_j L^r_ij e^{w_j − m^r_i} φ^r_k(k_j) [v_j, 1]ᵀ. Arithmetic is float32 at least, whatever the model runs in.

Shapes: query features (B, H, N, F), key features (B, K, N, F), log-weight (B, K, N), log-decay (B, K, N, R),
value (B, K, N, D); G = H/K query heads share a key-value head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Stands for the maximum of no keys at all: finite, so that differences of it are.
NO_KEYS = -1e30


class Features(NamedTuple):
    """What a mixer makes of queries and keys: φ_q, φ_k, w and log γ."""

    query: Tensor
    key: Tensor
    log_weight: Tensor
    log_decay: Tensor


class State(NamedTuple):
    """What the linear part remembers, whatever the length: sums (B, K, F, D+1) and maximum (B, K, R)."""

    sums: Tensor
    maximum: Tensor


class Weighted(NamedTuple):
    """o_i e^{−s_i} (B, H, N, D+1), and the shift s (B, H, N)."""

    sums: Tensor
    shift: Tensor


#: One way through a text: features, values and the state before → what each query gathers, and the state after.
Way = Callable[..., tuple[Weighted, State]]


class Ways(NamedTuple):
    """The reference through N × N, the one for whole texts, and the one for decoding."""

    parallel: Way
    chunked: Way
    recurrent: Way


def empty_state(features: Features, value: Tensor) -> State:
    batch, heads, _, feature_dim = features.key.shape
    sums = features.key.new_zeros(batch, heads, feature_dim, value.shape[-1] + 1)
    return State(sums, features.key.new_full((batch, heads, features.log_decay.shape[-1]), NO_KEYS))


def log_scores(
    features: Features, queries: Tensor | None = None, least: Tensor | None = None, causal: bool = True
) -> Tensor:
    """log S of a positive kernel, −∞ for j > i: (B, K, G, Q, N), for the positions `queries` (Q,), None for all.

    Where attention is not causal nothing is hidden, and there is no decay.

    Rounding can take a kernel near its minimum below it, where the logarithm would be wrong or undefined: `least`
    (H, M) is what each atom contributes at least.
    """
    kappa, gap = _kernel(features, queries), _decay(features.log_decay, queries)[:, :, None]
    if least is not None:
        bound = least.unflatten(-1, (kappa.shape[3], -1)).sum(-1).unflatten(0, kappa.shape[1:3])
        kappa = torch.maximum(kappa, bound[..., None, None])
    # Group by group relative to the slowest decay, which alone says how far an exponential can fall.
    top = gap.amax(3, keepdim=True).detach()
    kappa = kappa[:, :, :, 0] if kappa.shape[3] == 1 else (kappa * (gap - top).exp()).sum(3)
    top = gap[:, :, :, 0] if gap.shape[3] == 1 else top[:, :, :, 0]
    logs = kappa.clamp(min=torch.finfo(kappa.dtype).tiny).log() + top + features.log_weight[:, :, None, None]
    return logs.masked_fill(hidden(logs, queries, causal), -torch.inf)


def scores(features: Features, causal: bool = True) -> tuple[Tensor, Tensor]:
    """S e^{−s}, 0 for j > i where attention is causal: (B, K, G, N, N), and s (B, K, N)."""
    gap = _decay(features.log_decay, None) + features.log_weight[:, :, None, None]
    gap = gap.masked_fill(hidden(gap, None, causal), -torch.inf)
    shift = gap.detach().amax((2, 4)).clamp(min=NO_KEYS)
    weights = (gap - shift[:, :, None, :, None]).exp()
    return (_kernel(features, None) * weights[:, :, None]).sum(3), shift


def parallel(
    features: Features, value: Tensor, state: State | None = None, causal: bool = True
) -> tuple[Weighted, State]:
    """The reference, through the whole N × N matrix, without a state."""
    weights, shift = scores(features, causal)
    sums = (weights @ with_ones(value)[:, :, None]).flatten(1, 2)
    return Weighted(sums, per_query_head(shift, sums)), empty_state(features, value)


#: Tokens of a chunk. Of 16 to 512, on two cores and from 512 to 8,192 tokens, 32 to 128 take about the same time.
CHUNK = 64


def chunked(
    features: Features, value: Tensor, state: State | None = None, chunk: int = CHUNK
) -> tuple[Weighted, State]:
    """Explicit inside chunks of `chunk` tokens, through the state between them: O(N)."""
    length, groups = value.shape[2], features.log_decay.shape[-1]
    state = state or empty_state(features, value)
    query, key, log_weight, log_decay, values = in_chunks(features, value, chunk)

    # Σ log γ from the start of the chunk; relative to it, keys of the chunk weigh `local`, and older ones the state's.
    since = log_decay.cumsum(-1)
    local = log_weight[:, :, :, None] - since
    peak = local.detach().cummax(-1).values.clamp(min=NO_KEYS)
    total = since[..., -1].detach()
    before, last = _scan_maximum(peak[..., -1], total, state.maximum)
    maximum = since.detach() + torch.maximum(peak, before[..., None])
    shift = maximum.amax(3)

    weighted = key * (local + (since[..., -1] - last)[..., None]).exp()[..., None]
    decay = (before + since[..., -1] - last).exp()
    states, sums = _scan(weighted.mT @ values[:, :, :, None], decay, state.sums.unflatten(2, (groups, -1)))

    gap = since[..., :, None] + local[..., None, :] - shift[:, :, :, None, :, None]
    gap = gap.masked_fill(future(chunk, key.device), -torch.inf)
    near = (query @ key[:, :, None].mT * gap.exp()[:, :, None]).sum(4) @ values[:, :, None]
    reach = (before[..., None] + since - shift[:, :, :, None]).exp()
    far = ((query * reach[:, :, None, ..., None]) @ states[:, :, None]).sum(4)
    out = (near + far).flatten(3, 4).flatten(1, 2)[:, :, :length]
    shift = shift.flatten(2)[:, :, :length]
    # Cloned, or the state would keep the maxima of all chunks in memory.
    return Weighted(out, per_query_head(shift, out)), State(sums.flatten(2, 3), last[:, :, -1].clone())


def recurrent(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """Token after token through the state, as in decoding."""
    sums, maximum = state or empty_state(features, value)
    groups = maximum.shape[-1]
    sums = sums.unflatten(2, (groups, -1))
    query = grouped(features.query, features.key).unflatten(-1, (groups, -1))
    key, values = features.key.unflatten(-1, (groups, -1)), with_ones(value)
    outputs, shifts = [], []
    for i in range(value.shape[2]):
        log_weight, log_decay = features.log_weight[:, :, i, None], features.log_decay[:, :, i]
        decayed = maximum + log_decay
        maximum = torch.maximum(decayed, log_weight).detach().clamp(min=NO_KEYS)
        new = key[:, :, i] * (log_weight - maximum).exp()[..., None]
        sums = sums * (decayed - maximum).exp()[..., None, None] + new[..., None] * values[:, :, i, None, None]
        shift = maximum.amax(-1)
        scaled = query[:, :, :, i] * (maximum - shift[..., None]).exp()[:, :, None, :, None]
        outputs.append(torch.einsum("bkgrf,bkrfd->bkgd", scaled, sums))
        shifts.append(shift)
    out = torch.stack(outputs, 3).flatten(1, 2)
    return Weighted(out, per_query_head(torch.stack(shifts, 2), out)), State(sums.flatten(2, 3), maximum)


#: Where keys add to the state.
SUMS = Ways(parallel, chunked, recurrent)


def with_ones(value: Tensor) -> Tensor:
    """[v, 1]: the sum of the weights as an extra value column."""
    return torch.cat([value, torch.ones_like(value[..., :1])], -1)


def future(length: int, device: torch.device) -> Tensor:
    """(N, N), true for j > i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def hidden(logs: Tensor, queries: Tensor | None, causal: bool = True) -> Tensor:
    """(Q, N), true where a key lies in its query's future; of an attention that is not causal nothing is hidden."""
    token = torch.arange(logs.shape[-1], device=logs.device)
    rows = token if queries is None else queries
    return token > rows[:, None] if causal else token.new_zeros(len(rows), len(token), dtype=torch.bool)


def chosen(x: Tensor, queries: Tensor | None) -> Tensor:
    """The positions `queries` of x (B, H, N, …)."""
    return x if queries is None else x.index_select(2, queries)


def _kernel(features: Features, queries: Tensor | None) -> Tensor:
    """φ^r_q(q_i)·φ^r_k(k_j): (B, K, G, R, Q, N)."""
    groups = features.log_decay.shape[-1]
    query = grouped(chosen(features.query, queries), features.key).unflatten(-1, (groups, -1)).transpose(3, 4)
    return query @ features.key.unflatten(-1, (groups, -1)).transpose(2, 3)[:, :, None].mT


def _decay(log_decay: Tensor, queries: Tensor | None) -> Tensor:
    """log L^r_ij (B, K, R, Q, N); above 0 for j > i, where it means nothing."""
    since = log_decay.cumsum(2).transpose(2, 3)
    until = since if queries is None else since.index_select(3, queries)
    return until[..., :, None] - since[..., None, :]


def grouped(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, …) → (B, K, G, …): the query heads that share a key-value head side by side."""
    return query.unflatten(1, (key.shape[1], -1))


def per_query_head(shift: Tensor, like: Tensor) -> Tensor:
    """(B, K, N) → (B, H, N)."""
    return shift.repeat_interleave(like.shape[1] // shift.shape[1], 1)


def in_chunks(features: Features, value: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pad to a multiple of c = `chunk` with keys of weight −∞; split into C chunks and R groups of f features.

    φ_q (B, K, G, C, R, c, f), φ_k (B, K, C, R, c, f), w (B, K, C, c), log γ (B, K, C, R, c), [v, 1] (B, K, C, c, D+1).
    """
    groups, pad = features.log_decay.shape[-1], -value.shape[2] % chunk

    def fill(x: Tensor, amount: tuple[int, ...], filling: float = 0.0) -> Tensor:
        # Filling up with nothing would still copy.
        return torch.nn.functional.pad(x, amount, value=filling) if pad else x

    longer = (0, 0, 0, pad)
    query = fill(grouped(features.query, features.key), longer).unflatten(3, (-1, chunk))
    key = fill(features.key, longer).unflatten(2, (-1, chunk))
    return (
        query.unflatten(-1, (groups, -1)).transpose(4, 5),
        key.unflatten(-1, (groups, -1)).transpose(3, 4),
        fill(features.log_weight, (0, pad), -torch.inf).unflatten(2, (-1, chunk)),
        fill(features.log_decay, longer).unflatten(2, (-1, chunk)).mT,
        fill(with_ones(value), longer).unflatten(2, (-1, chunk)),
    )


def _scan_maximum(peak: Tensor, total: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """m_c = total_c + max(m_{c−1}, peak_c): the maxima before each chunk and after it, (B, K, C, R)."""
    found = [start]
    for c in range(peak.shape[2]):
        found.append(total[:, :, c] + torch.maximum(found[-1], peak[:, :, c]))
    return torch.stack(found[:-1], 2), torch.stack(found[1:], 2)


def _scan(local: Tensor, decay: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """state_c = decay_c · state_{c−1} + local_c: the states before each chunk (B, K, C, R, f, D+1), and the last."""
    before, state = [], start
    # Taken apart at once: on the way back a chunk taken by its number costs as much as all of them.
    for own, kept in zip(local.unbind(2), decay[..., None, None].unbind(2), strict=True):
        before.append(state)
        state = state * kept + own
    return torch.stack(before, 2), state
