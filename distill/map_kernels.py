"""KL(P‖A) of attention maps tile by tile, in Triton.

    KL_i = Σ_j P_ij (s_ij − a_ij) − ℓ_i + z_i,    ∂KL_i / ∂a_ij = A_ij − P_ij

s are the teacher's logits and ℓ their log-sum-exp; a are the student's log-weights and z theirs:

    a_ij = s_ij inside the window, i − w < j ≤ i,    and log κ_ij + w_j + g_i beyond it,    κ_ij = φ_q(q_i)·φ_k(k_j)

Neither P nor A is ever in memory: forwards keeps ℓ and z of each query, and backwards makes the tiles again, from
features φ that are made once. Of most tiles every row sees every key beyond its window: these need no mask, the sum of
κ_ij e^{w_j} needs an exponential per key alone. Logarithms, and w and g in memory, are to the base 2, whose powers are
one instruction; KL is in nats. `map_gradients` goes backwards.

The query rows are a sorted list of positions, of all where they are not SAMPLED. Programs with most to do come first,
since what a GPU does last it does with few. Sums are float32; products as MODE says, see `tiles.product`. Tests hold
all of it to `maploss.map_kl`.
"""

import triton
import triton.language as tl

from .flexformer.linear_rows import basis, features, polynomial
from .flexformer.tiles import LOG2_E, log2, narrow, product, rows

#: Stands for the maximum of nothing: finite, so that differences of it are.
NONE: tl.constexpr = tl.constexpr(-1e30)
#: The least that a kernel's value counts as, below which it has no gradient: as `engine.log_scores` has it.
TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def features_kernel(
    given, positions, frequency, bias, constant, linear, quadratic, phi, level, scale,
    R, N, H, F: tl.constexpr, D: tl.constexpr, DEGREE: tl.constexpr, BIASED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """φ (B, H, R, F) of the rows at `positions` (R,) of x (B, H, N, D), and their key weight or gate (B, H, R)."""
    head = tl.program_id(1).to(tl.int64)
    own = head % H
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    x = rows(given + head * N * D, tl.load(positions + row, mask=row < R, other=0), N, d, D)
    omega, bias_of = basis(frequency, bias, own, f, d, F, D, False)
    made, _ = features(x, omega, bias_of, scale, MODE)
    inside = (row < R)[:, None] & (f < F)[None, :]
    tl.store(phi + (head * R + row)[:, None] * F + f[None, :], narrow(made, phi.dtype.element_ty), mask=inside)
    found = polynomial(x, linear + own * D, quadratic + own * D, d, scale, D, DEGREE)
    if BIASED:
        found += tl.load(constant + own).to(tl.float32)
    tl.store(level + head * R + row, found * LOG2_E, mask=row < R)


@triton.jit
def whole_keys(i, N, W: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr):
    """Of keys from the first on, in tiles: how many all rows see beyond their windows, and how many any sees."""
    seen, some = N, N
    if CAUSAL:
        seen, some = tl.maximum(tl.min(i, 0).to(tl.int32) + 1 - W, 0), tl.max(i, 0).to(tl.int32) + 1
    return seen // TILE * TILE, some


@triton.jit
def scores(x, phi, y, psi, scaling, MODE: tl.constexpr):
    """s and κ of every row of x against every row of y."""
    return product(x, tl.trans(y), MODE) * scaling, product(phi, tl.trans(psi), MODE)


@triton.jit
def visible(i, row, j, there, Q, N, CAUSAL: tl.constexpr, PADDED: tl.constexpr):
    """Which of keys j rows at i see."""
    found = (row < Q) & (j < N)
    if CAUSAL:
        found = found & (j <= i)
    if PADDED:
        found = found & (tl.load(there + j, mask=j < N, other=0) != 0)
    return found


@triton.jit
def forward_kernel(
    query, key, query_phi, key_phi, weight, gate, there, positions, kl, teacher_size, beyond, scaling,
    Q, N, H, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Grid (B·H, blocks of rows from the last on): KL, ℓ and g − z (B, H, Q)."""
    head = tl.program_id(0).to(tl.int64)
    shared, there = head // G, there + head // H * N
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE + tl.arange(0, TILE)
    d, f, column = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_N)
    # In the place of rows beyond the last stands the last.
    at = tl.minimum(row, Q - 1)
    i = tl.load(positions + at)
    asked, phi = rows(query + head * N * D, i, N, d, D), rows(query_phi + head * Q * F, at, Q, f, F)
    opened = tl.load(gate + head * Q + at)
    whole, end = whole_keys(i, N, W, CAUSAL, BLOCK_N)
    size, gained, total = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    top, peak = size + NONE, size + NONE
    for first in range(0, whole, BLOCK_N):
        j = first + column
        y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F)
        s, kappa = scores(asked, phi, y, psi, scaling, MODE)
        kappa = tl.maximum(kappa, TINY)
        own = tl.load(weight + shared * N + j)
        gap = s - own[None, :] - log2(kappa)
        if PADDED:
            seen = tl.load(there + j) != 0
            s, own = tl.where(seen[None, :], s, float("-inf")), tl.where(seen, own, NONE)
        higher = tl.maximum(top, tl.max(s, 1))
        weights, shrunk = tl.exp2(s - higher[:, None]), tl.exp2(top - higher)
        size = size * shrunk + tl.sum(weights, 1)
        gained = gained * shrunk + tl.sum(weights * gap, 1)
        top = higher
        highest = tl.max(own, 0)
        sums = tl.exp2(own - highest)
        higher = tl.maximum(peak, highest)
        total = total * tl.exp2(peak - higher) + tl.sum(kappa * sums[None, :], 1) * tl.exp2(highest - higher)
        peak = higher
    gained -= opened * size
    some = total > 0
    student_top = tl.where(some, tl.log2(tl.where(some, total, 1.0)) + peak + opened, NONE)
    student_sum = tl.where(some, 1.0, 0.0)
    for first in range(whole, end, BLOCK_N):
        j = first + column
        y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F)
        s, kappa = scores(asked, phi, y, psi, scaling, MODE)
        a = log2(tl.maximum(kappa, TINY)) + tl.load(weight + shared * N + j, mask=j < N, other=0.0)[None, :]
        far = j[None, :] <= i[:, None] - W if W > 0 else j[None, :] < N
        a = tl.where(far, a + opened[:, None], s)
        seen = visible(i[:, None], row[:, None], j[None, :], there, Q, N, CAUSAL, PADDED)
        gap = s - a
        s, a = tl.where(seen, s, float("-inf")), tl.where(seen, a, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        weights, shrunk = tl.exp2(s - higher[:, None]), tl.exp2(top - higher)
        size = size * shrunk + tl.sum(weights, 1)
        gained = gained * shrunk + tl.sum(weights * gap, 1)
        top = higher
        higher = tl.maximum(student_top, tl.max(a, 1))
        student_sum = student_sum * tl.exp2(student_top - higher) + tl.sum(tl.exp2(a - higher[:, None]), 1)
        student_top = higher
    # A query that sees nothing has no map.
    seeing = size > 0
    size, student_sum = tl.where(seeing, size, 1.0), tl.where(seeing, student_sum, 1.0)
    log_size, log_sum = top + tl.log2(size), student_top + tl.log2(student_sum)
    place = head * Q + row
    tl.store(kl + place, tl.where(seeing, (gained / size - log_size + log_sum) / LOG2_E, 0.0), mask=row < Q)
    tl.store(teacher_size + place, log_size, mask=row < Q)
    tl.store(beyond + place, opened - log_sum, mask=row < Q)
