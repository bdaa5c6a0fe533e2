"""Backwards through `linear_kernels`, from the end of a text to its beginning.

With g_i the gradient of o_i e^{−s_i}, which has V + 1 columns,

    ∂/∂φ_q(q_i) = Σ_{j ≤ i} e^{w_j − s_i} (g_i·[v_j, 1]) φ_k(k_j)
    ∂/∂φ_k(k_j) = Σ_{i ≥ j} e^{w_j − s_i} (g_i·[v_j, 1]) φ_q(q_i)
    ∂/∂v_j      = Σ_{i ≥ j} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) g_i
    ∂/∂w_j      = φ_k(k_j)·∂/∂φ_k(k_j)

What keys need of later chunks is Σ_i e^{m − s_i} φ_q(q_i) g_iᵀ, m the largest w up to the end of theirs: no exponential
passes 1. Features are made anew, and their own gradients are taken here.
"""

import triton
import triton.language as tl

from ..tiles import product, rows
from .linear_kernels import NO_KEYS, chunk_of_keys, features


@triton.jit
def later_kernel(
    query, given, query_frequency, query_bias, before, shifts, sums, sizes, scale,
    N, K, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·K): Σ_i e^{m − s_i} φ_q(q_i) g_i of a chunk's queries, m the largest weight before the chunk."""
    chunk, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    top = tl.load(before + place * CHUNKS + chunk)
    reach = tl.exp(top - tl.load(shifts + place * N + n, mask=n < N, other=0.0))
    reach = tl.where(n < N, reach, 0.0)
    state, size = tl.zeros((BLOCK_F, BLOCK_V), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    for g in range(0, G):
        row = place * G + g
        asker = row % (K * G)
        x = rows(query + row * N * D, n, N, d, D).to(tl.float32) * scale
        phi = features(x, query_frequency + asker * F * D, query_bias + asker * F, f, d, F, D, MODE) * reach[:, None]
        state += product(tl.trans(phi), rows(given + row * N * (V + 1), n, N, v, V + 1), MODE)
        by_size = tl.load(given + (row * N + n) * (V + 1) + V, mask=n < N, other=0.0)
        size += tl.sum(phi * by_size[:, None], 0)
    spot = (place * CHUNKS + chunk) * F + f
    tl.store(sums + spot[:, None] * V + v[None, :], state, mask=(f < F)[:, None] & (v < V)[None, :])
    tl.store(sizes + spot, size, mask=f < F)


@triton.jit
def later_scan_kernel(
    sums, sizes, before, last, CHUNKS, F: tl.constexpr, V: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Grid (blocks of F, B·K): from the last chunk to the first, a chunk's sums become those of all after it, relative
    to the largest weight up to its end; last (B·K,): that of the whole text."""
    place = tl.program_id(1).to(tl.int64)
    f, v = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    inside = (f < F)[:, None] & (v < V)[None, :]
    running, size = tl.zeros((BLOCK_F, BLOCK_V), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    after = tl.load(last + place)
    for back in range(0, CHUNKS):
        chunk = CHUNKS - 1 - back
        spot = (place * CHUNKS + chunk) * F + f
        own = tl.load(sums + spot[:, None] * V + v[None, :], mask=inside, other=0.0)
        own_size = tl.load(sizes + spot, mask=f < F, other=0.0)
        tl.store(sums + spot[:, None] * V + v[None, :], running, mask=inside)
        tl.store(sizes + spot, size, mask=f < F)
        top = tl.load(before + place * CHUNKS + chunk)
        kept = tl.exp(top - after)
        running, size, after = running * kept + own, size * kept + own_size, top


@triton.jit
def through_softmax(phi, by_phi, x, frequency, by_frequency, by_bias, f, d, F: tl.constexpr, D: tl.constexpr,
                    MODE: tl.constexpr):  # fmt: skip
    """From the gradient for φ that for x, (C, D); those for Ω and b are added to what there is."""
    by_logit = phi * (by_phi - tl.sum(phi * by_phi, 1)[:, None])
    inside = (f < F)[:, None] & (d < D)[None, :]
    tl.atomic_add(by_frequency + f[:, None] * D + d[None, :], product(tl.trans(by_logit), x, MODE), mask=inside)
    tl.atomic_add(by_bias + f, tl.sum(by_logit, 0), mask=f < F)
    return product(by_logit, rows(frequency, f, F, d, D), MODE)


@triton.jit
def query_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    sums, sizes, before, given, by_query, by_frequency, by_bias, scale,
    N, K, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DEGREE: tl.constexpr,
    MODE: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H)."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    _, _, top, shift, decay, key_phi = chunk_of_keys(
        key, present, key_frequency, key_bias, linear, quadratic, before, place, chunk, n, d, f, scale,
        N, K, CHUNKS, F, D, DEGREE, MODE,
    )  # fmt: skip
    x = rows(query + row * N * D, n, N, d, D).to(tl.float32) * scale
    frequency = query_frequency + asker * F * D
    phi = features(x, frequency, query_bias + asker * F, f, d, F, D, MODE)
    asked = rows(given + row * N * (V + 1), n, N, v, V + 1)
    by_size = tl.load(given + (row * N + n) * (V + 1) + V, mask=n < N, other=0.0)
    worth = rows(value + place * N * V, n, N, v, V)
    by_score = (product(asked, tl.trans(worth), MODE) + by_size[:, None]) * decay
    spot = (place * CHUNKS + chunk) * F + f
    state = tl.load(sums + spot[:, None] * V + v[None, :], mask=(f < F)[:, None] & (v < V)[None, :], other=0.0)
    size = tl.load(sizes + spot, mask=f < F, other=0.0)
    far = product(asked, tl.trans(state), MODE) + by_size[:, None] * size[None, :]
    by_phi = product(by_score, key_phi, MODE) + far * tl.exp(top - shift)[:, None]
    by_x = through_softmax(
        phi, by_phi, x, frequency, by_frequency + asker * F * D, by_bias + asker * F, f, d, F, D, MODE
    )
    inside = (n < N)[:, None] & (d < D)[None, :]
    tl.store(by_query + row * N * D + n[:, None] * D + d[None, :], (by_x * scale).to(by_query.dtype.element_ty), inside)


@triton.jit
def key_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    sums, sizes, before, given, by_key, by_value, by_frequency, by_bias, by_linear, by_quadratic, scale,
    N, K, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DEGREE: tl.constexpr,
    MODE: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·K); sums and sizes are those of the queries after each chunk."""
    chunk, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = place % K
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    x, weight, top, _, decay, phi = chunk_of_keys(
        key, present, key_frequency, key_bias, linear, quadratic, before, place, chunk, n, d, f, scale,
        N, K, CHUNKS, F, D, DEGREE, MODE,
    )  # fmt: skip
    worth = rows(value + place * N * V, n, N, v, V)
    spot = (place * CHUNKS + chunk) * F + f
    state = tl.load(sums + spot[:, None] * V + v[None, :], mask=(f < F)[:, None] & (v < V)[None, :], other=0.0)
    size = tl.load(sizes + spot, mask=f < F, other=0.0)
    reach = tl.exp(weight - tl.maximum(tl.maximum(tl.max(weight, 0), top), NO_KEYS))
    by_phi = (product(worth, tl.trans(state), MODE) + size[None, :]) * reach[:, None]
    gained = product(phi, state, MODE) * reach[:, None]
    for g in range(0, G):
        row = place * G + g
        asker = row % (K * G)
        y = rows(query + row * N * D, n, N, d, D).to(tl.float32) * scale
        asked_phi = features(y, query_frequency + asker * F * D, query_bias + asker * F, f, d, F, D, MODE)
        asked = rows(given + row * N * (V + 1), n, N, v, V + 1)
        by_size = tl.load(given + (row * N + n) * (V + 1) + V, mask=n < N, other=0.0)
        scores = product(asked_phi, tl.trans(phi), MODE) * decay
        gained += product(tl.trans(scores), asked, MODE)
        by_score = (product(asked, tl.trans(worth), MODE) + by_size[:, None]) * decay
        by_phi += product(tl.trans(by_score), asked_phi, MODE)
    by_weight = tl.sum(phi * by_phi, 1)
    by_x = through_softmax(
        phi, by_phi, x, key_frequency + head * F * D, by_frequency + head * F * D, by_bias + head * F, f, d, F, D, MODE
    )
    if DEGREE >= 1:
        by_x += by_weight[:, None] * tl.load(linear + head * D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        tl.atomic_add(by_linear + head * D + d, tl.sum(by_weight[:, None] * x, 0), mask=d < D)
    if DEGREE >= 2:
        steep = tl.load(quadratic + head * D + d, mask=d < D, other=0.0).to(tl.float32)
        by_x += 2 * by_weight[:, None] * x * steep[None, :]
        tl.atomic_add(by_quadratic + head * D + d, tl.sum(by_weight[:, None] * x * x, 0), mask=d < D)
    inside = (n < N)[:, None] & (d < D)[None, :]
    tl.store(by_key + place * N * D + n[:, None] * D + d[None, :], (by_x * scale).to(by_key.dtype.element_ty), inside)
    inside = (n < N)[:, None] & (v < V)[None, :]
    tl.store(by_value + place * N * V + n[:, None] * V + v[None, :], gained.to(by_value.dtype.element_ty), inside)
