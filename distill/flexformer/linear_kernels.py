"""Causal linear attention joined to a window of exact softmax, in Triton.

    φ(x) = softmax(Ω x + b),    o_i = (e^{s_i + g_i} Σ_{j ≤ i−w} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) [v_j, 1]
                                      + Σ_{i−w < j ≤ i} e^{q_i·k_j} [v_j, 1]), divided by its last column

as `Mixer.forward` has it, in chunks of C tokens, SPAN chunks to a part: the sums before every chunk in its part, a scan
over those of whole parts, and then the outputs of every chunk, from both sums, from the chunk itself, and from its
window. No N × F tensor is in memory: features are made anew in each kernel, from a number for each token that the first
has found (norms); `linear_gradients` goes back. s_i is the largest w_j so far, g_i the window's gate. Other features
than these are GIVEN: φ_q (B, H, N, F), φ_k, w and g then stand in the place of frequencies and of the coefficients of
key weight and gate, and so do their gradients.

Keys and values are counted from where the window of the first query begins: query i is at i + W among them, and the
linear part, which runs W tokens behind, reads the first N. Of these rows the first SKIP are not in memory, W where a
text begins, 0 where it goes on and (B, K, W + N, ·) begins with what the window remembers; `present` counts likewise,
and is read where it is PADDED. Sums are rows of F·V + F numbers: Σ φ v and Σ φ. x stands for rows as
they came; what they count is x times `scale`, the root of softmax's scaling.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_rows import (
    NO_KEYS,
    basis,
    features_in_tile,
    features_of,
    gates,
    key_weight,
    numbers,
    real,
    taken_in_softmax,
)
from .tiles import LOG2_E, held_as, log2, narrow, power, product, rows, spots, summed, tokens, within

#: The least float32 that has all its digits.
LEAST_NORMAL: tl.constexpr = tl.constexpr(2.0**-126)


@triton.jit
def taken_in(state, ones, top, psi, weight, worth, MODE: tl.constexpr):
    """Σ e^{w_j − t} φ_j v_j, Σ e^{w_j − t} φ_j and t, the largest w_j, with those of one more chunk."""
    higher = tl.maximum(top, tl.max(weight, 0))
    shrunk, share = power(top - higher), power(weight - higher)
    state = state * shrunk + product(tl.trans(psi), worth.to(tl.float32) * share[:, None], MODE)
    return state, ones * shrunk + summed(psi, share, MODE), higher


@triton.jit
def read_sums(sums, spot, f, v, F: tl.constexpr, V: tl.constexpr):
    """Row `spot` of sums: Σ φ v (F, V) and Σ φ (F,)."""
    sums += spot * F * (V + 1)
    return rows(sums, f, F, v, V), tl.load(sums + F * V + f, mask=f < F, other=0.0).to(tl.float32)


@triton.jit
def write_sums(sums, spot, state, ones, f, v, F: tl.constexpr, V: tl.constexpr):
    """As `read_sums` finds them."""
    sums += spot * F * (V + 1)
    dtype: tl.constexpr = sums.dtype.element_ty
    tl.store(sums + f[:, None] * V + v[None, :], narrow(state, dtype), mask=within(f, F, v, V))
    tl.store(sums + F * V + f, narrow(ones, dtype), mask=f < F)


@triton.jit
def sums_kernel(
    key, value, present, frequency, bias, linear, quadratic, weights, norms, sums, peaks, part_sums, part_peaks, scale,
    N, K, SPAN, CHUNKS, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (parts, B·K, tiles): Σ_j e^{w_j − p} φ_k(k_j) [v_j, 1] of a part and a tile of features, of its keys before
    each chunk (sums) and of all (part_sums), p the largest w_j of these; and, the same of every tile, w (B, K, N), −∞
    where there is no key, and norms."""
    part, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head, held = place // K, place % K, N + W - SKIP
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    f = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    omega, level = basis(frequency, bias, head, f, d, F, D, GIVEN)
    state, ones = tl.zeros((BLOCK_F, BLOCK_V), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    peak = tl.max(ones, 0) + NO_KEYS
    for chunk in range(part * SPAN, tl.minimum(part * SPAN + SPAN, CHUNKS)):
        write_sums(sums, place * CHUNKS + chunk, state, ones, f, v, F, V)
        tl.store(peaks + place * CHUNKS + chunk, peak)
        n = chunk * C + tl.arange(0, C)
        x = tokens(key, batch, head, n - SKIP, held, d, D)
        there = real(present + batch * held, n, N, SKIP, PADDED)
        weight = key_weight(x, there, linear, quadratic, place, head, n - SKIP, held, d, scale, D, DEGREE, GIVEN)
        tl.store(weights + place * N + n, weight, mask=n < N)
        if GIVEN:
            phi = rows(frequency + place * held * F, n - SKIP, held, f, F).to(tl.float32)
        else:
            phi, norm = features_in_tile(x, omega, level, frequency, bias, head, f, d, scale, F, D, MODE)
            tl.store(norms + place * N + n, norm, mask=n < N)
        worth = tokens(value, batch, head, n - SKIP, held, v, V)
        state, ones, peak = taken_in(state, ones, peak, held_as(phi, MODE), weight, worth, MODE)
    spot = place * tl.num_programs(0) + part
    write_sums(part_sums, spot, state, ones, f, v, F, V)
    tl.store(part_peaks + spot, peak)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def shifted(weight, n, before):
    """s_i = the largest of what came before and of w_j, j ≤ i, in the chunk; and e^{w_j − s_i}, 0 for j > i."""
    shift = tl.maximum(tl.associative_scan(weight, 0, larger), before)
    gap = (weight * LOG2_E)[None, :] - (shift * LOG2_E)[:, None]
    return shift, tl.exp2(tl.where(n[None, :] <= n[:, None], gap, float("-inf")))


@triton.jit
def near_logits(x, y, n, j, there, scale, N, W: tl.constexpr, MODE: tl.constexpr):
    """q·k of queries x at n and keys y at j, −∞ outside the window: (C, C)."""
    logits = product(x, tl.trans(y), MODE) * (scale * scale)
    seen = (j[None, :] > n[:, None]) & (j[None, :] <= n[:, None] + W) & there[None, :] & (n < N)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def before(peaks, part_tops, place, chunk, SPAN, CHUNKS):
    """Of a chunk: the row of its part, and the largest w_j before the part, in it before the chunk, and of both."""
    parts = (CHUNKS + SPAN - 1) // SPAN
    part_top = tl.load(part_tops + place * (parts + 1) + chunk // SPAN)
    peak = tl.load(peaks + place * CHUNKS + chunk)
    return place * parts + chunk // SPAN, part_top, peak, tl.maximum(part_top, peak)


@triton.jit
def output_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, gate_bias, gate_linear,
    gate_quadratic, weights, key_norms, query_norms, sums, peaks, part_sums, part_tops, tops, out, far, far_shares,
    opened, joined, sizes, scale, epsilon,
    N, K, SPAN, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H): o (B, H, N, V), g_i − λ_i, λ_i and the size that both parts have joined (B, H, N).

    tops (B·K, CHUNKS + 1): the largest w_j before each chunk. λ_i is a weight's logarithm to all, see
    `linear_gradients`. Before it is divided by, a size is at least ε. Of more than one tile of features, beside a
    window: what the linear part gives alone, far (B, H, N, V), and its share in o, far_shares (B, H, N).
    """
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    n = chunk * C + tl.arange(0, C)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    weight = numbers(weights, place, n, N, float("-inf"))
    part, part_top, peak, top = before(peaks, part_tops, place, chunk, SPAN, CHUNKS)
    tops += place * (CHUNKS + 1) + chunk
    tl.store(tops, top)
    if chunk == CHUNKS - 1:
        tl.store(tops + 1, tl.load(part_tops + part + place + 1))
    x = tokens(query, batch, asker, n, N, d, D)
    found, scores = tl.zeros((C, BLOCK_V), tl.float32), tl.zeros((C, C), tl.float32)
    most, count, total = tl.full((C,), NO_KEYS, tl.float32), tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    for first in range(0, F, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        omega, level = basis(key_frequency, key_bias, head, f, d, F, D, GIVEN)
        psi = features_of(y, omega, level, key_frequency, key_norms, place, n, held, SKIP, N, f, scale, F, GIVEN, MODE)
        psi = held_as(psi, MODE)
        if GIVEN:
            phi = rows(query_frequency + row * N * F, n, N, f, F).to(tl.float32)
        else:
            omega, level = basis(query_frequency, query_bias, asker, f, d, F, D, GIVEN)
            phi, shrunk, most, count = taken_in_softmax(most, count, x, omega, level, scale, MODE)
            if F > BLOCK_F:
                found, scores, total = found * shrunk[:, None], scores * shrunk[:, None], total * shrunk
        state, ones = read_sums(sums, place * CHUNKS + chunk, f, v, F, V)
        part_state, part_ones = read_sums(part_sums, part, f, v, F, V)
        state = state.to(tl.float32) * power(peak - top) + part_state.to(tl.float32) * power(part_top - top)
        ones = ones * power(peak - top) + part_ones * power(part_top - top)
        found += product(phi, held_as(state, MODE), MODE)
        total += tl.sum(phi * ones[None, :], 1)
        scores += product(phi, tl.trans(psi), MODE)
    shift, decay = shifted(weight, n, top)
    reach = power(top - shift)
    if not GIVEN:
        tl.store(query_norms + row * N + n, most + log2(count), mask=n < N)
        reach, decay = reach / count, decay * (1.0 / count)[:, None]
    scores *= decay
    found = found * reach[:, None] + product(scores, tokens(value, batch, head, n - SKIP, held, v, V), MODE)
    total = total * reach + tl.sum(scores, 1)
    both, gate = shift, tl.zeros((C,), tl.float32)
    if W > 0:
        far_total = total
        if F > BLOCK_F:
            # Of a size that is subnormal, whose inverse is infinite, nothing is left.
            alone = found * (1.0 / tl.where(total >= LEAST_NORMAL, total, float("inf")))[:, None]
            tl.store(spots(far, batch, asker, n, v), narrow(alone, far[0].dtype.element_ty), mask=within(n, N, v, V))
        near = tl.full((C,), NO_KEYS, tl.float32)
        near_found, near_total = tl.zeros((C, BLOCK_V), tl.float32), tl.zeros((C,), tl.float32)
        for first in range(0, W + C, C):
            j = chunk * C + first + tl.arange(0, C)
            seen = real(present + batch * held, j, end, SKIP, PADDED)
            y = tokens(key, batch, head, j - SKIP, held, d, D)
            logits = near_logits(x, y, n, j, seen, scale, N, W, MODE)
            higher = tl.maximum(near, tl.max(logits, 1))
            shares, shrunk = power(logits - higher[:, None]), power(near - higher)
            worth = tokens(value, batch, head, j - SKIP, held, v, V)
            near_found = near_found * shrunk[:, None] + product(shares, worth, MODE)
            near_total = near_total * shrunk + tl.sum(shares, 1)
            near = higher
        gate = gates(x, gate_bias, gate_linear, gate_quadratic, row, asker, n, N, d, scale, D, GIVEN)
        both = tl.maximum(near, shift + gate)
        far_share, near_share = power(shift + gate - both), power(near - both)
        found = found * far_share[:, None] + near_found * near_share[:, None]
        total = total * far_share + near_total * near_share
    size = tl.maximum(total, epsilon)
    if W > 0 and F > BLOCK_F:
        tl.store(far_shares + row * N + n, far_total * far_share / size, mask=n < N)
    found, whole = found * (1.0 / size)[:, None], both + log2(size) / LOG2_E
    at = row * N + n
    tl.store(spots(out, batch, asker, n, v), narrow(found, out[0].dtype.element_ty), mask=within(n, N, v, V))
    tl.store(opened + at, gate - whole, mask=n < N)
    tl.store(joined + at, whole, mask=n < N)
    tl.store(sizes + at, total, mask=n < N)
