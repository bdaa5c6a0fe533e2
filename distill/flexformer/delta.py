"""The delta rule: a key writes its value over what the state says in its place, instead of adding to it.

    S_i = γ_i (I − β_i φ_k(k_i) φ_k(k_i)ᵀ) S_{i−1} + β_i φ_k(k_i) [v_i, 1]ᵀ,    [y_i, r_i] = φ_q(q_i)ᵀ S_i

With 0 < β < 1 and features of length 1 no step makes what stands in S longer. What is read is a value, and not a sum of
values that something would have to normalise, so that weights of either sign do no harm. The gated delta rule, Yang et
al. 2024 (arXiv:2412.06464), after Schlag et al. 2021 (arXiv:2102.11174).

Arguments, shapes and state are those of `engine`, with w = log β and one group of features. The last column of what is
read is r_i, the query's familiarity: 1 where keys like it were written, 0 where all that were are orthogonal to it.
`Reading` puts in its place what weighs the output. The shift is 0 from the first key on.
"""

import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from .engine import (
    NO_KEYS,
    Features,
    State,
    Ways,
    Weighted,
    empty_state,
    future,
    grouped,
    in_chunks,
    per_query_head,
    with_ones,
)
from .feature_map import HeadShape


class Reading(nn.Module):
    """[y, r] as read → [e^{g(q) + s r̃} y, 1], g(q) = b + u·q, r̃ = tanh r; beside a window e^{t r̃} times as heavy.

    s and t, per query head, let the familiarity r decide how much of what is read goes out, and how much it weighs:
    softmax knows from the sum of its weights whether any key far back answers the query.
    """

    def __init__(self, shape: HeadShape, window: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.heads))
        self.direction = nn.Parameter(torch.zeros(shape.heads, shape.head_dim))
        self.louder = nn.Parameter(torch.zeros(shape.heads))
        self.heavier = nn.Parameter(torch.zeros(shape.heads)) if window else None

    def forward(self, query: Tensor, read: Weighted) -> Weighted:
        """Of q (B, H, N, D) and what it read, (B, H, N, D+1)."""
        familiarity = read.sums[..., -1].tanh()
        gain = (query @ self.direction[..., None].to(query.dtype)).squeeze(-1) + self.bias[:, None]
        gain = gain + self.louder[:, None] * familiarity
        out, shift = with_ones(gain.exp()[..., None] * read.sums[..., :-1]), read.shift
        if self.heavier is not None:
            weight = self.heavier[:, None] * familiarity
            out, shift = out * (weight - weight.detach()).exp()[..., None], shift + weight.detach()
        return Weighted(out, shift)


def parallel(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """The reference: the whole text as one chunk, N × N."""
    return chunked(features, value, state, chunk=value.shape[2])


def chunked(features: Features, value: Tensor, state: State | None = None, chunk: int = 64) -> tuple[Weighted, State]:
    """Explicit inside chunks of `chunk` tokens, through the state between them: O(N).

    Inside a chunk, the rows that keys really write obey (I + β K ⊙ L) U = β (V − reach φ_k S) with the strictly lower
    part of K = φ_k φ_kᵀ. The triangular matrix is inverted for all chunks at once; weights stand on its narrow side
    and not on features, which are wide.
    """
    sums, maximum = state or empty_state(features, value)
    query, key, log_beta, log_decay, values = in_chunks(features, value, chunk)
    query, key, log_decay = query.squeeze(4), key.squeeze(3), log_decay.squeeze(3)

    since = log_decay.cumsum(-1)
    fade = (since[..., :, None] - since[..., None, :]).masked_fill(future(chunk, key.device), -torch.inf).exp()
    beta, reach, left = log_beta.exp(), since.exp(), (since[..., -1:] - since).exp()[..., None]
    # Of the system only what is strictly below the diagonal is read: ones are understood on it.
    system = beta[..., None] * (key @ key.mT) * fade
    one = torch.eye(chunk, dtype=key.dtype, device=key.device)
    writes = solve_triangular(system, one, upper=False, unitriangular=True) * beta[..., None, :]
    new, erased = writes @ values, (writes * reach[..., None, :]) @ key
    before, fresh, sums = _through(new, erased, key.mT, left, reach[..., -1:, None], sums)

    near = ((query @ key[:, :, None].mT) * fade[:, :, None]) @ fresh[:, :, None]
    far = reach[:, :, None, ..., None] * (query @ before[:, :, None])
    out = (near + far).flatten(3, 4).flatten(1, 2)[:, :, : value.shape[2]]
    return _read(out, features, State(sums, maximum))


def _through(
    new: Tensor, erased: Tensor, key: Tensor, left: Tensor, faded: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The states before each chunk (B, K, C, F, D+1), the rows that keys write (B, K, C, c, D+1), and the last state.

    The one loop there is: whatever can be done for all chunks at once is done outside.
    """
    shape, state = start.shape, start.flatten(0, 1)
    states, rows = [], []
    chunks = (part.flatten(0, 1).unbind(1) for part in (new, erased, key, left, faded))
    for n, e, k, w, f in zip(*chunks, strict=True):
        states.append(state)
        rows.append(torch.baddbmm(n, e, state, alpha=-1))
        state = torch.baddbmm(f * state, k, w * rows[-1])
    before, fresh = (torch.stack(each, 1).unflatten(0, shape[:2]) for each in (states, rows))
    return before, fresh, state.view(shape)


def recurrent(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """Token after token through the state, as in decoding."""
    sums, maximum = state or empty_state(features, value)
    query, values, outputs = grouped(features.query, features.key), with_ones(value), []
    for i in range(value.shape[2]):
        key, beta = features.key[:, :, i, :, None], features.log_weight[:, :, i, None, None].exp()
        sums = features.log_decay[:, :, i, :, None].exp() * sums
        sums = sums + beta * key * (values[:, :, i, None] - key.mT @ sums)
        outputs.append((query[:, :, :, i, None] @ sums[:, :, None]).squeeze(-2))
    out = torch.stack(outputs, 3).flatten(1, 2)
    return _read(out, features, State(sums, maximum))


DELTA = Ways(parallel, chunked, recurrent)


def _read(out: Tensor, features: Features, state: State) -> tuple[Weighted, State]:
    """What each query reads, and the state after the last token; `maximum` is 0 from the first key on."""
    # A running sum and not a running maximum, which ONNX has no word for.
    keys = (features.log_weight.detach() > -torch.inf).cumsum(-1)
    seen = torch.where((keys > 0) | (state.maximum == 0), 0.0, NO_KEYS).to(state.maximum.dtype)
    # Cloned, or the state would keep those of all tokens in memory.
    return Weighted(out, per_query_head(seen, out)), State(state.sums, seen[..., -1:].clone())
