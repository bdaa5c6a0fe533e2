"""Backwards through `map_kernels`: from tiles that are made again to gradients for what an exponential mixer learns.

    ∂KL_i / ∂κ_ij = e^{w_j + g_i − z_i} − P_ij / κ_ij,    ∂KL_i / ∂w_j = ∂KL_i / ∂g_i = A_ij − P_ij, summed,

of keys beyond the window, j ≤ i − w; those inside have nothing to learn. Of a map φ_f = softmax(Ω x + b)_f the gradient
for the logits is φ_f (∂_f − Σ φ ∂), which stays in the program that made ∂: what is written are gradients for parameters.
"""

import triton
import triton.language as tl

from .flexformer.linear_gradients import through_polynomial, through_softmax
from .flexformer.tiles import product, rows
from .map_kernels import TINY, scores, visible, whole_keys


@triton.jit
def gradients(s, kappa, weight, teacher, student, gate):
    """A − P, and what by κ, of tiles; the others broadcast over them."""
    kept = tl.maximum(kappa, TINY)
    by_value = tl.exp2(weight + (gate - student)) - tl.exp2(s - teacher - tl.log2(kept))
    return by_value * kept, tl.where(kappa > TINY, by_value, 0.0)


@triton.jit
def query_kernel(
    query, key, query_phi, key_phi, weight, gate, there, positions, teacher_size, student_size, given,
    linear, quadratic, by_frequency, by_bias, by_constant, by_linear, by_quadratic, scaling, scale,
    Q, N, H, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, B·H): for the queries' features and the gate; given: the gradient for KL."""
    head = tl.program_id(1).to(tl.int64)
    shared, there, own = head // G, there + head // H * N, head % H
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d, f, column = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_N)
    at = tl.minimum(row, Q - 1)
    place = head * Q + at
    i = tl.load(positions + at)
    x, phi = rows(query + head * N * D, i, N, d, D), rows(query_phi + head * Q * F, at, Q, f, F)
    teacher, student = tl.load(teacher_size + place)[:, None], tl.load(student_size + place)[:, None]
    opened = tl.load(gate + place)[:, None]
    whole, end = whole_keys(i, N, W, CAUSAL, BLOCK_N)
    by_phi, by_gate = tl.zeros((TILE, BLOCK_F), tl.float32), tl.zeros((TILE,), tl.float32)
    for first in range(0, whole, BLOCK_N):
        j = first + column
        psi = rows(key_phi + shared * N * F, j, N, f, F)
        s, kappa = scores(x, phi, rows(key + shared * N * D, j, N, d, D), psi, scaling, MODE)
        weights = tl.load(weight + shared * N + j)[None, :]
        if PADDED:
            seen = (tl.load(there + j) != 0)[None, :]
            s, weights = tl.where(seen, s, float("-inf")), tl.where(seen, weights, float("-inf"))
        by_log, by_value = gradients(s, kappa, weights, teacher, student, opened)
        by_phi += product(by_value, psi, MODE)
        by_gate += tl.sum(by_log, 1)
    for first in range(whole, end - W, BLOCK_N):
        j = first + column
        psi = rows(key_phi + shared * N * F, j, N, f, F)
        s, kappa = scores(x, phi, rows(key + shared * N * D, j, N, d, D), psi, scaling, MODE)
        weights = tl.load(weight + shared * N + j, mask=j < N, other=0.0)[None, :]
        seen = visible(i[:, None] - W, row[:, None], j[None, :], there, Q, N, CAUSAL, PADDED)
        s, weights = tl.where(seen, s, float("-inf")), tl.where(seen, weights, float("-inf"))
        by_log, by_value = gradients(s, kappa, weights, teacher, student, opened)
        by_phi += product(by_value, psi, MODE)
        by_gate += tl.sum(by_log, 1)
    by_kl = tl.load(given + place, mask=row < Q, other=0.0)
    x, phi = rows(query + head * N * D, i, N, d, D), rows(query_phi + head * Q * F, at, Q, f, F).to(tl.float32)
    by_phi *= by_kl[:, None]
    through_softmax(phi, by_phi, x, by_frequency + own * F * D, by_bias + own * F, f, d, scale, F, D, MODE)
    if W > 0:
        by_gate *= by_kl
        tl.atomic_add(by_constant + own, tl.sum(by_gate, 0), sem="relaxed")
        through_polynomial(
            by_gate, x, linear + own * D, quadratic + own * D, by_linear + own * D, by_quadratic + own * D,
            d, scale, D, 2,
        )  # fmt: skip


@triton.jit
def first_row(positions, position, Q):
    """How many of the sorted positions lie before `position`."""
    low, high = 0, Q
    while low < high:
        middle = (low + high) // 2
        before = tl.load(positions + middle) < position
        low, high = tl.where(before, middle + 1, low), tl.where(before, high, middle)
    return low


@triton.jit
def by_rows(
    keys, psi, weights, seen, query, query_phi, gate, there, positions, teacher_size, student_size, given,
    row, head, j, d, f, scaling,
    Q, N, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr,
    MODE: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Of keys × rows: the gradients of KL for log-weights and for κ; and the rows' features. ALL: rows see all keys."""
    at = tl.minimum(row, Q - 1)
    place = head * Q + at
    i, phi = tl.load(positions + at), rows(query_phi + head * Q * F, at, Q, f, F)
    s, kappa = scores(keys, psi, rows(query + head * N * D, i, N, d, D), phi, scaling, MODE)
    if not ALL:
        shown = visible(i[None, :] - W, row[None, :], j[:, None], there, Q, N, CAUSAL, PADDED)
        s, weights = tl.where(shown, s, float("-inf")), tl.where(shown, weights, float("-inf"))
    elif PADDED or not CAUSAL:
        s = tl.where(seen[:, None], s, float("-inf"))
    teacher, student = tl.load(teacher_size + place)[None, :], tl.load(student_size + place)[None, :]
    by_log, by_value = gradients(s, kappa, weights, teacher, student, tl.load(gate + place)[None, :])
    by_kl = tl.load(given + place, mask=row < Q, other=0.0)[None, :]
    return by_log * by_kl, by_value * by_kl, phi


@triton.jit
def key_kernel(
    query, key, query_phi, key_phi, weight, gate, there, positions, teacher_size, student_size, given,
    linear, quadratic, by_frequency, by_bias, by_linear, by_quadratic, scaling, scale,
    Q, N, K, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr, DEGREE: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of keys, B·K): for the keys' features and weights, over the G query heads that read them."""
    shared = tl.program_id(1).to(tl.int64)
    there, own = there + shared // K * N, shared % K
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d, f, column = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_N)
    y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F)
    seen = j < N
    if PADDED:
        seen = seen & (tl.load(there + j, mask=j < N, other=0) != 0)
    weights = tl.load(weight + shared * N + j, mask=seen, other=float("-inf"))[:, None]
    by_phi, by_weight = tl.zeros((TILE, BLOCK_F), tl.float32), tl.zeros((TILE,), tl.float32)
    begin, whole = 0, 0
    if CAUSAL:
        # The first row that sees one of these keys beyond its window, and the first that sees all.
        begin = first_row(positions, tl.program_id(0) * TILE + W, Q) // BLOCK_N * BLOCK_N
        whole = first_row(positions, tl.program_id(0) * TILE + TILE - 1 + W, Q)
        whole = (whole + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    for g in range(0, G):
        head = shared * G + g
        for first in range(begin, tl.minimum(whole, Q), BLOCK_N):
            by_log, by_value, phi = by_rows(
                y, psi, weights, seen, query, query_phi, gate, there, positions, teacher_size, student_size, given,
                first + column, head, j, d, f, scaling, Q, N, F, D, W, CAUSAL, PADDED, MODE, False,
            )  # fmt: skip
            by_phi += product(by_value, phi, MODE)
            by_weight += tl.sum(by_log, 1)
        for first in range(whole, Q, BLOCK_N):
            by_log, by_value, phi = by_rows(
                y, psi, weights, seen, query, query_phi, gate, there, positions, teacher_size, student_size, given,
                first + column, head, j, d, f, scaling, Q, N, F, D, W, CAUSAL, PADDED, MODE, True,
            )  # fmt: skip
            by_phi += product(by_value, phi, MODE)
            by_weight += tl.sum(by_log, 1)
    y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F).to(tl.float32)
    through_softmax(psi, by_phi, y, by_frequency + own * F * D, by_bias + own * F, f, d, scale, F, D, MODE)
    through_polynomial(
        by_weight, y, linear + own * D, quadratic + own * D, by_linear + own * D, by_quadratic + own * D,
        d, scale, D, DEGREE,
    )  # fmt: skip
