"""Backwards through `map_kernels`: from tiles that are made again to gradients for features, key weight and gate.

    ∂KL_i / ∂κ_ij = e^{w_j + g_i − z_i} − P_ij / κ_ij,    ∂KL_i / ∂w_j = ∂KL_i / ∂g_i = A_ij − P_ij, summed,

of keys beyond the window, j ≤ i − w; those inside have nothing to learn. Where the mixer is of exponential features,
φ_f = softmax(Ω x + b)_f, the gradient for the logits is φ_f (∂_f − Σ φ ∂) and stays in the program that made ∂: what is
written are gradients for parameters. Where features are GIVEN those for φ, g and w stand in their place, as in
`flexformer.linear_kernels`, and PyTorch goes on from them.
"""

import triton
import triton.language as tl

from .flexformer.linear_gradients import add_basis, through_polynomial
from .flexformer.tiles import held_as, log2, product, rows
from .map_kernels import NONE, TINY, scores, visible, whole_keys


@triton.jit
def through_softmax(phi, by_phi):
    """From the gradient for φ that for its logits."""
    return phi * (by_phi - tl.sum(phi * by_phi, 1)[:, None])


@triton.jit
def gradients(s, kappa, raised, teacher):
    """A − P, and what by κ, of tiles; raised, A / κ, and ℓ broadcast over them."""
    kept = tl.maximum(kappa, TINY)
    by_value = raised - tl.exp2(s - teacher - log2(kept))
    return by_value * kept, tl.where(kappa > TINY, by_value, 0.0)


@triton.jit
def over_keys(
    x, phi, key, key_phi, weight, there, teacher_size, beyond, given, row, i, place, d, f, scaling,
    Q, N, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Of rows x at i: the gradients for φ (TILE, F) and for g (TILE,). Keys and what is theirs are one head's."""
    column = tl.arange(0, BLOCK_N)
    teacher, raised = tl.load(teacher_size + place)[:, None], tl.load(beyond + place)[:, None]
    whole, end = whole_keys(i, N, W, CAUSAL, BLOCK_N)
    by_phi, by_gate = tl.zeros((TILE, BLOCK_F), tl.float32), tl.zeros((TILE,), tl.float32)
    for first in range(0, whole, BLOCK_N):
        j = first + column
        psi = rows(key_phi, j, N, f, F)
        s, kappa = scores(x, phi, rows(key, j, N, d, D), psi, scaling, MODE)
        weights = tl.load(weight + j)
        if PADDED:
            seen = tl.load(there + j) != 0
            s, weights = tl.where(seen[None, :], s, float("-inf")), tl.where(seen, weights, float("-inf"))
        # An exponential of each row and of each key, and not of every pair.
        highest = tl.maximum(tl.max(weights, 0), NONE)
        shares = tl.exp2(weights - highest)[None, :] * tl.exp2(highest + raised)
        by_log, by_value = gradients(s, kappa, shares, teacher)
        by_phi += product(by_value, psi, MODE)
        by_gate += tl.sum(by_log, 1)
    for first in range(whole, end - W, BLOCK_N):
        j = first + column
        psi = rows(key_phi, j, N, f, F)
        s, kappa = scores(x, phi, rows(key, j, N, d, D), psi, scaling, MODE)
        weights = tl.load(weight + j, mask=j < N, other=0.0)[None, :]
        seen = visible(i[:, None] - W, row[:, None], j[None, :], there, Q, N, CAUSAL, PADDED)
        s, weights = tl.where(seen, s, float("-inf")), tl.where(seen, weights, float("-inf"))
        by_log, by_value = gradients(s, kappa, tl.exp2(weights + raised), teacher)
        by_phi += product(by_value, psi, MODE)
        by_gate += tl.sum(by_log, 1)
    by_kl = tl.load(given + place, mask=row < Q, other=0.0)
    return by_phi * by_kl[:, None], by_gate * by_kl


@triton.jit
def query_kernel(
    query, key, query_phi, key_phi, weight, there, positions, teacher_size, beyond, given,
    linear, quadratic, by_frequency, by_bias, by_constant, by_linear, by_quadratic, scaling, scale,
    Q, N, H, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Grid (B·H, blocks of rows from the last on): for the queries' side; given: the gradient for KL."""
    head = tl.program_id(0).to(tl.int64)
    shared, own = head // G, head % H
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * TILE + tl.arange(0, TILE)
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    at = tl.minimum(row, Q - 1)
    i = tl.load(positions + at)
    x, phi = rows(query + head * N * D, i, N, d, D), rows(query_phi + head * Q * F, at, Q, f, F)
    by_phi, by_gate = over_keys(
        x, phi, key + shared * N * D, key_phi + shared * N * F, weight + shared * N, there + head // H * N,
        teacher_size, beyond, given, row, i, head * Q + at, d, f, scaling,
        Q, N, F, D, W, CAUSAL, PADDED, MODE, TILE, BLOCK_N, BLOCK_F,
    )  # fmt: skip
    if GIVEN:
        spot, inside = (head * Q + row)[:, None] * F + f[None, :], (row < Q)[:, None] & (f < F)[None, :]
        tl.store(by_frequency + spot, by_phi, mask=inside)
        if W > 0:
            tl.store(by_constant + head * Q + row, by_gate, mask=row < Q)
    else:
        x, phi = rows(query + head * N * D, i, N, d, D), rows(query_phi + head * Q * F, at, Q, f, F).to(tl.float32)
        by_logit = through_softmax(phi, by_phi)
        add_basis(held_as(by_logit, MODE), x, by_frequency, by_bias, own, f, d, scale, F, D, MODE)
        if W > 0:
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
    keys, psi, weights, seen, query, query_phi, there, positions, teacher_size, beyond, given,
    row, head, j, d, f, scaling,
    Q, N, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr, SAMPLED: tl.constexpr, CAUSAL: tl.constexpr,
    PADDED: tl.constexpr, MODE: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Of keys × rows: the gradients of KL for log-weights and for κ; and the rows' features. ALL: rows see all keys."""
    at = tl.minimum(row, Q - 1)
    place = head * Q + at
    i, phi = at, rows(query_phi + head * Q * F, at, Q, f, F)
    if SAMPLED:
        i = tl.load(positions + at)
    s, kappa = scores(keys, psi, rows(query + head * N * D, i, N, d, D), phi, scaling, MODE)
    teacher, raised = tl.load(teacher_size + place)[None, :], tl.load(beyond + place)[None, :]
    if ALL:
        if PADDED or not CAUSAL:
            s = tl.where(seen[:, None], s, float("-inf"))
        # An exponential of each key and of each row, and not of every pair.
        highest = tl.maximum(tl.max(weights), NONE)
        shares = tl.exp2(weights - highest) * tl.exp2(highest + raised)
    else:
        shown = visible(i[None, :] - W, row[None, :], j[:, None], there, Q, N, CAUSAL, PADDED)
        s = tl.where(shown, s, float("-inf"))
        shares = tl.exp2(tl.where(shown, weights + raised, float("-inf")))
    by_log, by_value = gradients(s, kappa, shares, teacher)
    by_kl = tl.load(given + place, mask=row < Q, other=0.0)[None, :]
    return by_log * by_kl, by_value * by_kl, phi


@triton.jit
def over_rows(
    y, psi, weights, seen, query, query_phi, there, positions, teacher_size, beyond, given, shared, start, d, f,
    scaling,
    Q, N, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr, SAMPLED: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Of keys y from `start` on: the gradients for φ (TILE, F) and for w (TILE,), over the G heads that read them."""
    j, column = start + tl.arange(0, TILE), tl.arange(0, BLOCK_N)
    by_phi, by_weight = tl.zeros((TILE, BLOCK_F), tl.float32), tl.zeros((TILE,), tl.float32)
    begin, whole = 0, 0
    if CAUSAL:
        # The first row that sees one of these keys beyond its window, and the first that sees all.
        begin, whole = start + W, start + W + TILE - 1
        if SAMPLED:
            begin, whole = first_row(positions, begin, Q), first_row(positions, whole, Q)
        begin, whole = begin // BLOCK_N * BLOCK_N, (whole + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    for g in range(0, G):
        head = shared * G + g
        for first in range(begin, tl.minimum(whole, Q), BLOCK_N):
            by_log, by_value, phi = by_rows(
                y, psi, weights, seen, query, query_phi, there, positions, teacher_size, beyond, given,
                first + column, head, j, d, f, scaling, Q, N, F, D, W, SAMPLED, CAUSAL, PADDED, MODE, False,
            )  # fmt: skip
            by_phi += product(by_value, phi, MODE)
            by_weight += tl.sum(by_log, 1)
        for first in range(whole, Q, BLOCK_N):
            by_log, by_value, phi = by_rows(
                y, psi, weights, seen, query, query_phi, there, positions, teacher_size, beyond, given,
                first + column, head, j, d, f, scaling, Q, N, F, D, W, SAMPLED, CAUSAL, PADDED, MODE, True,
            )  # fmt: skip
            by_phi += product(by_value, phi, MODE)
            by_weight += tl.sum(by_log, 1)
    return by_phi, by_weight


@triton.jit
def key_kernel(
    query, key, query_phi, key_phi, weight, there, positions, teacher_size, beyond, given,
    linear, quadratic, by_frequency, by_bias, by_linear, by_quadratic, scaling, scale,
    Q, N, K, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, W: tl.constexpr, DEGREE: tl.constexpr,
    SAMPLED: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Grid (B·K, blocks of keys): for the keys' side."""
    shared, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE
    there, own = there + shared // K * N, shared % K
    j, d, f = start + tl.arange(0, TILE), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F)
    seen = j < N
    if PADDED:
        seen = seen & (tl.load(there + j, mask=j < N, other=0) != 0)
    weights = tl.load(weight + shared * N + j, mask=seen, other=float("-inf"))[:, None]
    by_phi, by_weight = over_rows(
        y, psi, weights, seen, query, query_phi, there, positions, teacher_size, beyond, given, shared, start, d, f,
        scaling, Q, N, G, F, D, W, SAMPLED, CAUSAL, PADDED, MODE, TILE, BLOCK_N, BLOCK_F,
    )  # fmt: skip
    if GIVEN:
        spot, inside = (shared * N + j)[:, None] * F + f[None, :], (j < N)[:, None] & (f < F)[None, :]
        tl.store(by_frequency + spot, by_phi, mask=inside)
        tl.store(by_linear + shared * N + j, by_weight, mask=j < N)
    else:
        y, psi = rows(key + shared * N * D, j, N, d, D), rows(key_phi + shared * N * F, j, N, f, F).to(tl.float32)
        by_logit = through_softmax(psi, by_phi)
        add_basis(held_as(by_logit, MODE), y, by_frequency, by_bias, own, f, d, scale, F, D, MODE)
        through_polynomial(
            by_weight, y, linear + own * D, quadratic + own * D, by_linear + own * D, by_quadratic + own * D,
            d, scale, D, DEGREE,
        )  # fmt: skip
