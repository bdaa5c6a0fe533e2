"""How far a student's attention map is from its teacher's: the losses of stage 1.

P (B, K, G, Q, N) are the teacher's weights, A the student's; G query heads share each of K key-value heads. `queries`
(Q,) are the positions i that are compared, every one where it is None. Padding is neither attended to nor compared.
Every result is per head: (H,) with H = K·G.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .capture import Heads
from .flexformer.attempt import KERNELS, PYTORCH, tell
from .flexformer.engine import chosen, hidden
from .flexformer.exact import exact_attention
from .flexformer.mixer import Mixer
from .flexformer.token_mixer import TokenMixer
from .flexformer.weights import Whole, log_weights
from .map_stream import WHAT, streams, try_stream_kl

#: Numbers of a map that are held at a time, 64 MiB of them in float32, and a few such tensors on the way.
TILE = 2**24
#: How a block is computed again: nothing in it is random.
AGAIN: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
#: Queries to a block where launching is cheap: the more blocks, the less is computed of what nobody sees.
CPU_BLOCK = 64


def log_teacher(heads: Heads, queries: Tensor | None = None) -> Tensor:
    """log P, −∞ at padding and in the future of a causal attention."""
    query = chosen(heads.query, queries).float().unflatten(1, (heads.key.shape[1], -1))
    logits = query @ heads.key.float()[:, :, None].mT * heads.scaling
    unseen = hidden(logits, queries, heads.causal)
    if heads.padding is not None:
        unseen = unseen | (heads.padding == 0)[:, None, None, None]
    return logits.masked_fill(unseen, -torch.inf).log_softmax(-1)


def log_student(mixer: Mixer, heads: Heads, queries: Tensor | None = None) -> Tensor:
    """log A of a comparable mixer, −∞ at padding and in the future of a causal attention."""
    return mixer.log_weights(heads.query, heads.key, heads.scaling, queries, heads.padding)


def map_kl(teacher: Tensor, student: Tensor, padding: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
    """KL(P‖A) = Σ_j P_ij (log P_ij − log A_ij), mean over batch and queries, from log P and log A."""
    return per_head(row_kl(teacher, student), padding, queries)


def row_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(P‖A) of each query, (B, K, G, Q)."""
    # Where nothing is seen both are −∞, and their difference would be undefined.
    gap = (teacher - student).masked_fill(teacher == -torch.inf, 0)
    return (teacher.exp() * gap).sum(-1)


def layer_kl(mixer: Mixer, heads: Heads, queries: Tensor | None = None) -> Tensor:
    """`map_kl` of a comparable mixer and its teacher, with no map in memory that does not fit into one tile.

    queries (Q,): sorted, where the heads are.
    """
    rows = torch.arange(heads.key.shape[2], device=heads.key.device) if queries is None else queries
    found = try_stream_kl(mixer, heads, rows) if streams(mixer, heads) else None
    tell(WHAT, PYTORCH if found is None else KERNELS)
    if found is None:
        found = kl_in_blocks(mixer.whole(heads.query, heads.key, heads.scaling, heads.padding), heads, rows)
    return per_head(found, heads.padding, rows)


def kl_in_blocks(whole: Whole, heads: Heads, rows: Tensor) -> Tensor:
    """KL(P‖A) of the queries at `rows`, sorted, (B, K, G, Q): block after block, against the keys that they see.

    Where not all fit into one tile no block is kept: each is computed again on the way back, and memory grows with N as
    features do, not with N × N.
    """
    fits, most = len(rows) * per_row(heads) <= TILE, max(1, TILE // per_row(heads))
    blocks = rows.split(min(most, CPU_BLOCK) if rows.device.type == "cpu" else most)
    found = []
    for block, end in zip(blocks, ends(blocks, heads), strict=True):
        given = whole, heads, block, end
        found.append(block_kl(*given) if fits else checkpoint(block_kl, *given, **AGAIN))
    return torch.cat(found, -1)


def ends(blocks: tuple[Tensor, ...], heads: Heads) -> list[int]:
    """How many keys each block of queries sees, or more where to ask which they are would wait for a GPU."""
    length, counts = heads.key.shape[2], [len(block) for block in blocks]
    if heads.causal and sum(counts) == length:
        return list(accumulate(counts))
    if heads.causal and blocks[0].device.type == "cpu":
        return [int(block[-1]) + 1 for block in blocks]
    return [length] * len(blocks)


def per_row(heads: Heads) -> int:
    """The numbers of a layer's maps that are one query's."""
    return heads.query[:, :, 0, 0].numel() * heads.key.shape[2]


def block_kl(whole: Whole, heads: Heads, queries: Tensor, end: int) -> Tensor:
    """KL(P‖A) of these queries, (B, K, G, Q), which see none but the first `end` keys."""
    padding = None if heads.padding is None else heads.padding[:, :end]
    teacher = log_teacher(heads._replace(key=heads.key[:, :, :end], padding=padding), queries)
    return row_kl(teacher, log_weights(whole.until(end), queries))


def output_error(mixer: TokenMixer, heads: Heads) -> Tensor:
    """‖PV − o‖² / ‖PV‖², both summed over batch and queries, since single outputs can be arbitrarily small."""
    apart, size = output_gap(mixer, heads)
    return apart / size


def output_gap(mixer: TokenMixer, heads: Heads) -> tuple[Tensor, Tensor]:
    """‖PV − o‖² and ‖PV‖², summed over batch and queries."""
    query, key, value = heads.query.float(), heads.key.float(), heads.value.float()
    wanted = exact_attention(query, key, value, heads.scaling, heads.padding, heads.causal)
    got, _ = mixer(query, key, value, heads.scaling, heads.padding)
    if heads.padding is not None:
        real = (heads.padding != 0)[:, None, :, None]
        wanted, got = wanted * real, got * real
    return (wanted - got).square().sum((0, 2, 3)), wanted.square().sum((0, 2, 3))


def negative_share(weights: Tensor, padding: Tensor | None = None) -> Tensor:
    """Σ_j max(−S_ij, 0) / Σ_j |S_ij| of S (B, K, G, N, N), mean over batch and queries."""
    share = weights.clamp(max=0).abs().sum(-1) / weights.abs().sum(-1).clamp(min=1e-30)
    return per_head(share, padding)


def per_head(values: Tensor, padding: Tensor | None, queries: Tensor | None = None) -> Tensor:
    """The mean over batch and queries that are no padding: (B, K, G, Q) → (H,)."""
    if padding is None:
        return values.mean((0, 3)).flatten()
    real = chosen(padding[:, None] != 0, queries)[:, :, None]
    return (values * real).sum((0, 3)).flatten() / real.sum().clamp(min=1)
