"""KL(P‖A) of attention maps tile by tile, in Triton, and its gradients for φ_q, the gate, φ_k and the key weight.

    KL_i = Σ_j P_ij (s_ij − a_ij) − ℓ_i + z_i,    ∂KL_i / ∂a_ij = A_ij − P_ij

s are the teacher's logits and ℓ their log-sum-exp; a are the student's log-weights and z theirs:

    a_ij = s_ij inside the window, i − w < j ≤ i,    and log φ_q(q_i)·φ_k(k_j) + w_j + gate_i beyond it

Neither P nor A is ever in memory: forwards keeps ℓ and z of each query, and backwards makes the tiles again. The query
rows are a sorted list of positions. φ_k and w stand `window` places late, as the mixer makes them: token j's in column
j + w. Tests hold all of it to `maploss.map_kl`.

Grids: (blocks of rows, B·H) forwards; (blocks of rows, B·H, blocks of F) and (blocks of keys, B·K, blocks of F)
backwards. Sums are float32; products as MODE says, see `tiles.product`.
"""

import triton
import triton.language as tl

from .flexformer.tiles import product, rows

#: Stands for the maximum of nothing: finite, so that differences of it are.
NONE: tl.constexpr = tl.constexpr(-1e30)
#: The least that a kernel's value counts as, below which it has no gradient: as `engine.log_scores` has it.
TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def tile(
    asked, asked_features, keys, key_features, log_weight, gate, there, i, row, row_count, j, scaling,
    N, W: tl.constexpr, CAUSAL: tl.constexpr, GATED: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """s, a, the kernel's values and which of them count, of rows (M,) at positions i and keys j (N,)."""
    s = product(asked, tl.trans(keys), MODE) * scaling
    visible = (row < row_count)[:, None] & (j < N)[None, :]
    if CAUSAL:
        visible = visible & (j[None, :] <= i[:, None])
    if PADDED:
        visible = visible & (tl.load(there + j, mask=j < N, other=0) != 0)[None, :]
    s = tl.where(visible, s, float("-inf"))
    kappa = product(asked_features, tl.trans(key_features), MODE)
    a = tl.log(tl.maximum(kappa, TINY)) + tl.load(log_weight + j + W, mask=j + W < N, other=0.0)[None, :]
    if GATED:
        a += tl.load(gate + i, mask=row < row_count, other=0.0)[:, None]
    far = visible
    if W > 0:
        far = visible & (j[None, :] <= i[:, None] - W)
    return s, tl.where(far, a, s), kappa, far


@triton.jit
def forward_kernel(
    query, key, query_features, key_features, log_weight, gate, there, positions, kl, teacher_size, student_size,
    scaling,
    Q, N, H, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, GATED: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    shared = head // G
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    i = tl.load(positions + row, mask=row < Q, other=0)
    asked, features = rows(query + head * N * D, i, N, d, D), rows(query_features + head * N * F, i, N, f, F)
    end = N
    if CAUSAL:
        end = tl.max(i, 0) + 1
    top, size = tl.full((BLOCK_M,), NONE, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    student_top, student_sum = tl.full((BLOCK_M,), NONE, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    gained = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        s, a, _, far = tile(
            asked, features, rows(key + shared * N * D, j, N, d, D),
            rows(key_features + shared * N * F, j + W, N, f, F),
            log_weight + shared * N, gate + head * N, there + head // H * N, i, row, Q, j, scaling,
            N, W, CAUSAL, GATED, PADDED, MODE,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(s, 1))
        weight, shrunk = tl.exp(s - higher[:, None]), tl.exp(top - higher)
        size = size * shrunk + tl.sum(weight, 1)
        gained = gained * shrunk + tl.sum(weight * (tl.where(far, s, 0.0) - tl.where(far, a, 0.0)), 1)
        top = higher
        higher = tl.maximum(student_top, tl.max(a, 1))
        student_sum = student_sum * tl.exp(student_top - higher) + tl.sum(tl.exp(a - higher[:, None]), 1)
        student_top = higher
    # A query that sees nothing has no map.
    seen = size > 0
    size, student_sum = tl.where(seen, size, 1.0), tl.where(seen, student_sum, 1.0)
    log_size, log_sum = top + tl.log(size), student_top + tl.log(student_sum)
    place = head * Q + row
    tl.store(kl + place, tl.where(seen, gained / size - log_size + log_sum, 0.0), mask=row < Q)
    tl.store(teacher_size + place, log_size, mask=row < Q)
    tl.store(student_size + place, log_sum, mask=row < Q)


@triton.jit
def query_kernel(
    query, key, query_features, key_features, log_weight, gate, there, positions, teacher_size, student_size, given,
    query_gradient, gate_gradient, scaling,
    Q, N, H, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, GATED: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Gradients for φ_q, of `PART` features, and for the gate; given: those of KL."""
    head = tl.program_id(1).to(tl.int64)
    shared = head // G
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, f, part = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.program_id(2) * PART + tl.arange(0, PART)
    place = head * Q + row
    i = tl.load(positions + row, mask=row < Q, other=0)
    asked, features = rows(query + head * N * D, i, N, d, D), rows(query_features + head * N * F, i, N, f, F)
    teacher = tl.load(teacher_size + place, mask=row < Q, other=0.0)
    student = tl.load(student_size + place, mask=row < Q, other=0.0)
    by_kl = tl.load(given + place, mask=row < Q, other=0.0)
    end = N
    if CAUSAL:
        end = tl.max(i, 0) + 1 - W
    gradient, opened = tl.zeros((BLOCK_M, PART), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for first in range(0, end, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        far_features = rows(key_features + shared * N * F, j + W, N, f, F)
        s, a, kappa, far = tile(
            asked, features, rows(key + shared * N * D, j, N, d, D), far_features,
            log_weight + shared * N, gate + head * N, there + head // H * N, i, row, Q, j, scaling,
            N, W, CAUSAL, GATED, PADDED, MODE,
        )  # fmt: skip
        by_log = tl.where(far, (tl.exp(a - student[:, None]) - tl.exp(s - teacher[:, None])) * by_kl[:, None], 0.0)
        by_value = tl.where(kappa > TINY, by_log / tl.maximum(kappa, TINY), 0.0)
        if PART < BLOCK_F:
            far_features = rows(key_features + shared * N * F, j + W, N, part, F)
        gradient += product(by_value, far_features, MODE)
        opened += tl.sum(by_log, 1)
    inside = (row < Q)[:, None] & (part < F)[None, :]
    tl.store(query_gradient + head * N * F + i[:, None] * F + part[None, :], gradient, mask=inside)
    if GATED and tl.program_id(2) == 0:
        tl.store(gate_gradient + head * N + i, opened, mask=row < Q)


@triton.jit
def key_kernel(
    query, key, query_features, key_features, log_weight, gate, there, positions, teacher_size, student_size, given,
    begins, key_gradient, weight_gradient, scaling,
    Q, N, K, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, GATED: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Gradients for φ_k, of `PART` features, and for the key weight, over the G query heads that read them."""
    shared = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)
    d, f, part = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.program_id(2) * PART + tl.arange(0, PART)
    keys = rows(key + shared * N * D, j, N, d, D)
    far_features = rows(key_features + shared * N * F, j + W, N, f, F)
    gradient, weighed = tl.zeros((BLOCK_N, PART), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
    # Of rows before it none sees anything of this block.
    begin = tl.load(begins + tl.program_id(0)).to(tl.int32)
    for g in range(0, G):
        head = shared * G + g
        for start in range(begin, Q, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            i = tl.load(positions + row, mask=row < Q, other=0)
            place = head * Q + row
            teacher = tl.load(teacher_size + place, mask=row < Q, other=0.0)
            student = tl.load(student_size + place, mask=row < Q, other=0.0)
            by_kl = tl.load(given + place, mask=row < Q, other=0.0)
            features = rows(query_features + head * N * F, i, N, f, F)
            s, a, kappa, far = tile(
                rows(query + head * N * D, i, N, d, D), features, keys, far_features,
                log_weight + shared * N, gate + head * N, there + shared // K * N, i, row, Q, j, scaling,
                N, W, CAUSAL, GATED, PADDED, MODE,
            )  # fmt: skip
            by_log = tl.exp(a - student[:, None]) - tl.exp(s - teacher[:, None])
            by_log = tl.where(far, by_log * by_kl[:, None], 0.0)
            by_value = tl.where(kappa > TINY, by_log / tl.maximum(kappa, TINY), 0.0)
            if PART < BLOCK_F:
                features = rows(query_features + head * N * F, i, N, part, F)
            gradient += product(tl.trans(by_value), features, MODE)
            weighed += tl.sum(by_log, 0)
    column = j + W
    inside = (column < N)[:, None] & (part < F)[None, :]
    tl.store(key_gradient + shared * N * F + column[:, None] * F + part[None, :], gradient, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(weight_gradient + shared * N + column, weighed, mask=column < N)
