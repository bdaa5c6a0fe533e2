"""Causal linear attention of exponential features, fused with the feature map, in Triton: no N × F tensor in memory.

    φ(x) = softmax(Ω x + b),    o_i e^{−s_i} = Σ_{j ≤ i} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) [v_j, 1]

as `engine.chunked` has it, in chunks of C tokens: every chunk's own sums, a scan over these, and then the outputs, each
from the sums before its chunk and from the chunk itself. The shift s_i is the largest w_j so far. Features are made
anew in each kernel; `linear_gradients` goes back.

Chunks are rows of C of (·, N, ·), masked at the end; sums are (B·K, chunks, F, V) and (B·K, chunks, F), in float32.
"""

import triton
import triton.language as tl

from ..tiles import product, rows

#: Stands for the maximum of no keys at all: `engine.NO_KEYS`.
NO_KEYS: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def features(x, frequency, bias, f, d, F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr):
    """softmax(Ω x + b) of rows x: (C, F)."""
    logits = product(x, tl.trans(rows(frequency, f, F, d, D)), MODE)
    logits += tl.load(bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    logits = tl.where((f < F)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def key_weight(x, n, count, linear, quadratic, present, d, D: tl.constexpr, DEGREE: tl.constexpr):
    """log-weights of rows x, −∞ for those that are absent: (C,)."""
    weight = tl.sum(x * 0.0, 1)
    if DEGREE >= 1:
        weight += tl.sum(x * tl.load(linear + d, mask=d < D, other=0.0).to(tl.float32)[None, :], 1)
    if DEGREE >= 2:
        weight += tl.sum(x * x * tl.load(quadratic + d, mask=d < D, other=0.0).to(tl.float32)[None, :], 1)
    there = tl.load(present + n, mask=n < count, other=0) != 0
    return tl.where(there, weight, float("-inf"))


@triton.jit
def sums_kernel(
    key, value, present, frequency, bias, linear, quadratic, sums, sizes, peaks, scale,
    N, K, CHUNKS, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DEGREE: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·K): Σ_j e^{w_j − p} φ_k(k_j) [v_j, 1] of a chunk by itself, and its largest w_j, p."""
    chunk, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = place % K
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    x = rows(key + place * N * D, n, N, d, D).to(tl.float32) * scale
    weight = key_weight(x, n, N, linear + head * D, quadratic + head * D, present + place // K * N, d, D, DEGREE)
    peak = tl.maximum(tl.max(weight, 0), NO_KEYS)
    phi = features(x, frequency + head * F * D, bias + head * F, f, d, F, D, MODE) * tl.exp(weight - peak)[:, None]
    state = product(tl.trans(phi), rows(value + place * N * V, n, N, v, V), MODE)
    spot = (place * CHUNKS + chunk) * F + f
    tl.store(sums + spot[:, None] * V + v[None, :], state, mask=(f < F)[:, None] & (v < V)[None, :])
    tl.store(sizes + spot, tl.sum(phi, 0), mask=f < F)
    tl.store(peaks + place * CHUNKS + chunk, peak)


@triton.jit
def scan_kernel(
    sums, sizes, peaks, before, state, state_size, state_peak,
    CHUNKS, F: tl.constexpr, V: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of F, B·K): a chunk's sums become those of all before it, relative to the largest weight there, that
    is written to `before`.

    `state` and the two beside it are what there is before the first chunk, and become what there is after the last; the
    peak in a second row, since all blocks read the first.
    """
    place = tl.program_id(1).to(tl.int64)
    f, v = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    inside = (f < F)[:, None] & (v < V)[None, :]
    at = place * F + f
    running = tl.load(state + at[:, None] * V + v[None, :], mask=inside, other=0.0)
    size = tl.load(state_size + at, mask=f < F, other=0.0)
    peak = tl.load(state_peak + place)
    for chunk in range(0, CHUNKS):
        spot = (place * CHUNKS + chunk) * F + f
        own = tl.load(sums + spot[:, None] * V + v[None, :], mask=inside, other=0.0)
        own_size = tl.load(sizes + spot, mask=f < F, other=0.0)
        own_peak = tl.load(peaks + place * CHUNKS + chunk)
        tl.store(sums + spot[:, None] * V + v[None, :], running, mask=inside)
        tl.store(sizes + spot, size, mask=f < F)
        if tl.program_id(0) == 0:
            tl.store(before + place * CHUNKS + chunk, peak)
        higher = tl.maximum(peak, own_peak)
        kept, added = tl.exp(peak - higher), tl.exp(own_peak - higher)
        running, size, peak = running * kept + own * added, size * kept + own_size * added, higher
    tl.store(state + at[:, None] * V + v[None, :], running, mask=inside)
    tl.store(state_size + at, size, mask=f < F)
    if tl.program_id(0) == 0:
        tl.store(state_peak + place + tl.num_programs(1), peak)


@triton.jit
def shifted(weight, n, before):
    """s_i = the largest of what came before and of w_j, j ≤ i, in the chunk; and e^{w_j − s_i}, 0 for j > i."""
    weight = tl.where(n[None, :] <= n[:, None], weight[None, :], float("-inf"))
    shift = tl.maximum(tl.max(weight, 1), before)
    return shift, tl.exp(weight - shift[:, None])


@triton.jit
def chunk_of_keys(
    key, present, frequency, bias, linear, quadratic, before, place, chunk, n, d, f, scale,
    N, K, CHUNKS, F: tl.constexpr, D: tl.constexpr, DEGREE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Of a chunk's keys: scaled, their w, the largest before them, s_i, e^{w_j − s_i}, and features."""
    head = place % K
    x = rows(key + place * N * D, n, N, d, D).to(tl.float32) * scale
    weight = key_weight(x, n, N, linear + head * D, quadratic + head * D, present + place // K * N, d, D, DEGREE)
    top = tl.load(before + place * CHUNKS + chunk)
    shift, decay = shifted(weight, n, top)
    phi = features(x, frequency + head * F * D, bias + head * F, f, d, F, D, MODE)
    return x, weight, top, shift, decay, phi


@triton.jit
def output_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    sums, sizes, before, out, shifts, scale,
    N, K, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DEGREE: tl.constexpr,
    MODE: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H): o_i e^{−s_i} (B, H, N, V + 1) and, of each key-value head, s_i (B, K, N)."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    _, _, top, shift, decay, key_phi = chunk_of_keys(
        key, present, key_frequency, key_bias, linear, quadratic, before, place, chunk, n, d, f, scale,
        N, K, CHUNKS, F, D, DEGREE, MODE,
    )  # fmt: skip
    x = rows(query + row * N * D, n, N, d, D).to(tl.float32) * scale
    phi = features(x, query_frequency + asker * F * D, query_bias + asker * F, f, d, F, D, MODE)
    scores = product(phi, tl.trans(key_phi), MODE) * decay
    spot = (place * CHUNKS + chunk) * F + f
    state = tl.load(sums + spot[:, None] * V + v[None, :], mask=(f < F)[:, None] & (v < V)[None, :], other=0.0)
    size = tl.load(sizes + spot, mask=f < F, other=0.0)
    reach = tl.exp(top - shift)
    found = product(scores, rows(value + place * N * V, n, N, v, V), MODE) + product(phi, state, MODE) * reach[:, None]
    total = tl.sum(scores, 1) + tl.sum(phi * size[None, :], 1) * reach
    at = (row * N + n) * (V + 1)
    tl.store(out + at[:, None] + v[None, :], found, mask=(n < N)[:, None] & (v < V)[None, :])
    tl.store(out + at + V, total, mask=n < N)
    if row % G == 0:
        tl.store(shifts + place * N + n, shift, mask=n < N)
