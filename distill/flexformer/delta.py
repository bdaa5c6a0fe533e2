"""The delta rule: a key writes its value over what the state says in its place, instead of adding to it.

    S_i = γ_i (I − β_i φ_k(k_i) φ_k(k_i)ᵀ) S_{i−1} + β_i φ_k(k_i) v_iᵀ,    o_i = e^{g(q_i)} φ_q(q_i)ᵀ S_i

With 0 < β < 1 and features of length 1 no step makes what stands in S longer. What is read is a value, and not a sum of
values that something would have to normalise, so that weights of either sign do no harm. The gated delta rule, Yang et
al. 2024 (arXiv:2412.06464), after Schlag et al. 2021 (arXiv:2102.11174).

Arguments and shapes are those of `engine`, with w = log β, one group of features, and a state without a column for the
sum of the weights: (B, K, F, D). What goes out has 1 in that column; its shift is 0 from the first key on.
"""

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from .engine import NO_KEYS, Features, State, Ways, Weighted, future, grouped, in_chunks, per_query_head, with_ones
from .feature_map import HeadShape


class Reading(nn.Module):
    """e^{g(q)}, g(q) = b + u·q: how much of what is read goes out, per query head."""

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.heads))
        self.direction = nn.Parameter(torch.zeros(shape.heads, shape.head_dim))

    def forward(self, query: Tensor) -> Tensor:
        """(B, H, N, D) → (B, H, N, 1)."""
        return (query @ self.direction[..., None].to(query.dtype) + self.bias[:, None, None]).exp()


def parallel(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """The reference: the whole text as one chunk, N × N."""
    return chunked(features, value, state, chunk=value.shape[2])


def chunked(features: Features, value: Tensor, state: State | None = None, chunk: int = 64) -> tuple[Weighted, State]:
    """Explicit inside chunks of `chunk` tokens, through the state between them: O(N).

    Inside a chunk, the rows that keys really write obey (I + β K ⊙ L) U = β (V − reach φ_k S) with the strictly lower
    part of K = φ_k φ_kᵀ: a triangular system, solved for V and for what S takes part in at once.
    """
    sums, maximum = state or no_keys(features, value)
    query, key, log_beta, log_decay, values = in_chunks(features, value, chunk)
    query, key, log_decay, values = query.squeeze(4), key.squeeze(3), log_decay.squeeze(3), values[..., :-1]

    since = log_decay.cumsum(-1)
    fade = (since[..., :, None] - since[..., None, :]).masked_fill(future(chunk, key.device), -torch.inf).exp()
    beta, reach, left = log_beta.exp()[..., None], since.exp()[..., None], (since[..., -1:] - since).exp()[..., None]
    # Of the system only what is strictly below the diagonal is read: ones are understood on it.
    system = beta * (key @ key.mT) * fade
    written = solve_triangular(system, beta * torch.cat([values, reach * key], -1), upper=False, unitriangular=True)
    new, erased = written.split([values.shape[-1], key.shape[-1]], -1)
    before, fresh, sums = _through(new, erased, (left * key).mT, reach[..., -1:, :], sums)

    near = ((query @ key[:, :, None].mT) * fade[:, :, None]) @ fresh[:, :, None]
    far = (query * reach[:, :, None]) @ before[:, :, None]
    out = (near + far).flatten(3, 4).flatten(1, 2)[:, :, : value.shape[2]]
    return _read(out, features, State(sums, maximum))


def _through(new: Tensor, erased: Tensor, kept: Tensor, faded: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The states before each chunk (B, K, C, F, D), the rows that keys write (B, K, C, c, D), and the last state.

    The one loop there is: whatever can be done for all chunks at once is done outside.
    """
    shape, state = start.shape, start.flatten(0, 1)
    states, rows = [], []
    chunks = (part.flatten(0, 1).unbind(1) for part in (new, erased, kept, faded))
    for n, e, k, f in zip(*chunks, strict=True):
        states.append(state)
        rows.append(torch.baddbmm(n, e, state, alpha=-1))
        state = torch.baddbmm(f * state, k, rows[-1])
    before, fresh = (torch.stack(each, 1).unflatten(0, shape[:2]) for each in (states, rows))
    return before, fresh, state.view(shape)


def recurrent(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """Token after token through the state, as in decoding."""
    sums, maximum = state or no_keys(features, value)
    query, outputs = grouped(features.query, features.key), []
    for i in range(value.shape[2]):
        key, beta = features.key[:, :, i, :, None], features.log_weight[:, :, i, None, None].exp()
        sums = features.log_decay[:, :, i, :, None].exp() * sums
        sums = sums + beta * key * (value[:, :, i, None] - key.mT @ sums)
        outputs.append((query[:, :, :, i, None] @ sums[:, :, None]).squeeze(-2))
    out = torch.stack(outputs, 3).flatten(1, 2)
    return _read(out, features, State(sums, maximum))


DELTA = Ways(parallel, chunked, recurrent)


def no_keys(features: Features, value: Tensor) -> State:
    """The state before the first token."""
    batch, heads, _, feature_dim = features.key.shape
    sums = value.new_zeros(batch, heads, feature_dim, value.shape[-1])
    return State(sums, features.key.new_full((batch, heads, 1), NO_KEYS))


def _read(out: Tensor, features: Features, state: State) -> tuple[Weighted, State]:
    """What each query reads, and the state after the last token; `maximum` is 0 from the first key on."""
    here = torch.where(features.log_weight.detach() > -torch.inf, 0.0, NO_KEYS).to(state.maximum.dtype)
    seen = torch.maximum(here.cummax(-1).values, state.maximum)
    # Cloned, or the state would keep those of all tokens in memory.
    return Weighted(with_ones(out), per_query_head(seen, out)), State(state.sums, seen[..., -1:].clone())
