"""Causal linear attention joined to a window of exact softmax, in Triton.

    φ(x) = softmax(Ω x + b),    o_i = (e^{s_i + g_i} Σ_{j ≤ i−w} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) [v_j, 1]
                                      + Σ_{i−w < j ≤ i} e^{q_i·k_j} [v_j, 1]), divided by its last column

as `Mixer.forward` has it, in chunks of C tokens: every chunk's own sums, a scan over these, and then the outputs, each
from the sums before its chunk, from the chunk itself, and from its window. No N × F tensor is in memory: features are
made anew in each kernel; `linear_gradients` goes back. s_i is the largest w_j so far, g_i the window's gate. Other
features than these are GIVEN: φ_q (B, H, N, F), φ_k, w and g then stand in the place of frequencies and of the
coefficients of key weight and gate, and so do their gradients.

Keys and values are counted from where the window of the first query begins: query i is at i + W among them, and the
linear part, which runs W tokens behind, reads the first N. Of these rows the first SKIP are not in memory, W where a
text begins, 0 where it goes on and (B, K, W + N, ·) begins with what the window remembers; `present` counts likewise,
and is read where it is PADDED. A chunk's sums are a row of F·V + F numbers: Σ φ v and Σ φ. x stands for rows as
they came; what they count is x times `scale`, the root of softmax's scaling.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .tiles import held_as, narrow, product, rows, spots, tokens

#: Stands for the maximum of no keys at all: `engine.NO_KEYS`.
NO_KEYS: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def features(x, frequency, bias, f, d, scale, F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr):
    """softmax(Ω x + b) of rows x: (C, F)."""
    logits = product(x, tl.trans(rows(frequency, f, F, d, D)), MODE) * scale
    logits += tl.load(bias + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
    logits = tl.where((f < F)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def polynomial(x, linear, quadratic, d, scale, D: tl.constexpr, DEGREE: tl.constexpr):
    """u·x + c·x² of rows x, as far as DEGREE says: (C,)."""
    y = x.to(tl.float32) * scale
    found = tl.sum(y * 0.0, 1)
    if DEGREE >= 1:
        found += tl.sum(y * tl.load(linear + d, mask=d < D, other=0.0).to(tl.float32)[None, :], 1)
    if DEGREE >= 2:
        found += tl.sum(y * y * tl.load(quadratic + d, mask=d < D, other=0.0).to(tl.float32)[None, :], 1)
    return found


@triton.jit
def real(present, j, end, SKIP: tl.constexpr, PADDED: tl.constexpr):
    """Which of keys j before `end` there are."""
    found = (j >= SKIP) & (j < end)
    if PADDED:
        found = tl.load(present + j - SKIP, mask=found, other=0) != 0
    return found


@triton.jit
def features_of(
    x, frequency, bias, place, head, n, count, f, d, scale, F: tl.constexpr, D: tl.constexpr, GIVEN: tl.constexpr,
    MODE: tl.constexpr,
):  # fmt: skip
    """φ of rows n, x, of the `count` at `place`: (C, F)."""
    if GIVEN:
        phi = rows(frequency + place * count * F, n, count, f, F).to(tl.float32)
    else:
        phi = features(x, frequency + head * F * D, bias + head * F, f, d, scale, F, D, MODE)
    return phi


@triton.jit
def key_weight(
    x, there, linear, quadratic, place, head, n, held, d, scale, D: tl.constexpr, DEGREE: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """w of rows n of the keys in memory, x, −∞ for those that are not there: (C,)."""
    if GIVEN:
        weight = tl.load(linear + place * held + n, mask=there, other=0.0)
    else:
        weight = polynomial(x, linear + head * D, quadratic + head * D, d, scale, D, DEGREE)
    return tl.where(there, weight, float("-inf"))


@triton.jit
def gates(
    x, bias, linear, quadratic, row, asker, n, N, d, scale, W: tl.constexpr, D: tl.constexpr, GIVEN: tl.constexpr
):
    """g of queries n, x; 0 where there is no window beside which it would count: (C,)."""
    gate = tl.zeros_like(n).to(tl.float32)
    if W > 0:
        if GIVEN:
            gate = tl.load(bias + row * N + n, mask=n < N, other=0.0)
        else:
            gate = polynomial(x, linear + asker * D, quadratic + asker * D, d, scale, D, 2)
            gate += tl.load(bias + asker).to(tl.float32)
    return gate


@triton.jit
def sums_kernel(
    key, value, present, frequency, bias, linear, quadratic, sums, peaks, scale,
    N, K, CHUNKS, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·K): Σ_j e^{w_j − p} φ_k(k_j) [v_j, 1] of a chunk by itself, and its largest w_j, p."""
    chunk, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head, held = place // K, place % K, N + W - SKIP
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    x = tokens(key, batch, head, n - SKIP, held, d, D)
    there = real(present + batch * held, n, N, SKIP, PADDED)
    weight = key_weight(x, there, linear, quadratic, place, head, n - SKIP, held, d, scale, D, DEGREE, GIVEN)
    peak = tl.maximum(tl.max(weight, 0), NO_KEYS)
    phi = features_of(x, frequency, bias, place, head, n - SKIP, held, f, d, scale, F, D, GIVEN, MODE)
    phi = phi * tl.exp(weight - peak)[:, None]
    state = product(tl.trans(phi), tokens(value, batch, head, n - SKIP, held, v, V), MODE)
    spot = sums + (place * CHUNKS + chunk) * F * (V + 1)
    inside = (f < F)[:, None] & (v < V)[None, :]
    tl.store(spot + f[:, None] * V + v[None, :], narrow(state, sums.dtype.element_ty), mask=inside)
    tl.store(spot + F * V + f, narrow(tl.sum(phi, 0), sums.dtype.element_ty), mask=f < F)
    tl.store(peaks + place * CHUNKS + chunk, peak)


@triton.jit
def scan_kernel(
    sums, tops, peaks, before, before_top, after, last,
    CHUNKS, F: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr, REVERSE: tl.constexpr, GOES_ON: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of F·V + F numbers, B·K): sums (B·K, CHUNKS, ·) of chunks become those of all before each.

    With e^{w_j − t}, t the largest w_j before the chunk, which becomes row c of tops (B·K, CHUNKS + 1). Where a text
    GOES_ON, what came before is in `before` (B, K, F, V + 1); all there is at its end goes to `after`, and the largest
    w_j to `last`. REVERSE: of all chunks after each, with e^{m − s_i}, see `linear_gradients`; tops are read.
    """
    place = tl.program_id(1).to(tl.int64)
    X: tl.constexpr = F * V + F
    x, row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, ROWS)
    remembered = place * X + tl.where(x < F * V, x + x // V, (x - F * V) * (V + 1) + V)
    peaks += place * CHUNKS
    tops += place * (CHUNKS + 1)
    found, start = tl.zeros((BLOCK,), tl.float32), tl.max(tl.zeros((ROWS,), tl.float32), 0) + NO_KEYS
    if GOES_ON:
        found, start = tl.load(before + remembered, mask=x < X, other=0.0), tl.load(before_top + place)
    if REVERSE:
        start = -tl.load(tops + CHUNKS)
    earlier = row[None, :] < row[:, None]
    for first in range(0, CHUNKS, ROWS):
        c = first + row
        if REVERSE:
            # Largest of all is the last: from the end on, what is smaller counts as more.
            at = CHUNKS - 1 - c
            source = -tl.load(tops + at, mask=at >= 0, other=-NO_KEYS)
            target = -tl.load(tops + tl.maximum(at + 1, 0))
            end = -tl.load(tops + tl.maximum(CHUNKS - first - ROWS, 0))
        else:
            at = c
            source = tl.load(peaks + c, mask=c < CHUNKS, other=NO_KEYS)
            target = tl.maximum(tl.max(tl.where(earlier, source[None, :], NO_KEYS), 1), start)
            end = tl.maximum(tl.max(source, 0), start)
            if tl.program_id(0) == 0:
                tl.store(tops + c, target, mask=c < CHUNKS)
        spot = sums + (place * CHUNKS + at)[:, None] * X + x[None, :]
        inside = (c < CHUNKS)[:, None] & (x < X)[None, :]
        own = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
        gap = tl.where(earlier, source[None, :] - target[:, None], float("-inf"))
        all_before = product(tl.exp(gap), own, MODE) + tl.exp(start - target)[:, None] * found[None, :]
        tl.store(spot, narrow(all_before, sums.dtype.element_ty), mask=inside)
        found = found * tl.exp(start - end) + tl.sum(own * tl.exp(source - end)[:, None], 0)
        start = end
    if not REVERSE:
        tl.store(after + remembered, found, mask=x < X)
        if tl.program_id(0) == 0:
            tl.store(tops + CHUNKS, start)
            tl.store(last + place, start)


@triton.jit
def shifted(weight, n, before):
    """s_i = the largest of what came before and of w_j, j ≤ i, in the chunk; and e^{w_j − s_i}, 0 for j > i."""
    weight = tl.where(n[None, :] <= n[:, None], weight[None, :], float("-inf"))
    shift = tl.maximum(tl.max(weight, 1), before)
    return shift, tl.exp(weight - shift[:, None])


@triton.jit
def near_logits(x, y, n, j, there, scale, N, W: tl.constexpr, MODE: tl.constexpr):
    """q·k of queries x at n and keys y at j, −∞ outside the window: (C, C)."""
    logits = product(x, tl.trans(y), MODE) * (scale * scale)
    seen = (j[None, :] > n[:, None]) & (j[None, :] <= n[:, None] + W) & there[None, :] & (n < N)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def output_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    gate_bias, gate_linear, gate_quadratic, sums, tops, out, joined, sizes, scale, epsilon,
    N, K, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H): o (B, H, N, V), and the shift and the size (B, H, N) that both parts have joined.

    Before it is divided by, a size is at least ε.
    """
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    present += batch * held
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    there = real(present, n, N, SKIP, PADDED)
    weight = key_weight(y, there, linear, quadratic, place, head, n - SKIP, held, d, scale, D, DEGREE, GIVEN)
    top = tl.load(tops + place * (CHUNKS + 1) + chunk)
    shift, decay = shifted(weight, n, top)
    psi = features_of(y, key_frequency, key_bias, place, head, n - SKIP, held, f, d, scale, F, D, GIVEN, MODE)
    psi = held_as(psi, MODE)
    x = tokens(query, batch, asker, n, N, d, D)
    phi = features_of(x, query_frequency, query_bias, row, asker, n, N, f, d, scale, F, D, GIVEN, MODE)
    spot = sums + (place * CHUNKS + chunk) * F * (V + 1)
    size = tl.load(spot + F * V + f, mask=f < F, other=0.0).to(tl.float32)
    reach = tl.exp(top - shift)
    found = product(phi, rows(spot, f, F, v, V), MODE) * reach[:, None]
    total = tl.sum(phi * size[None, :], 1) * reach
    scores = product(phi, tl.trans(psi), MODE) * decay
    found += product(scores, tokens(value, batch, head, n - SKIP, held, v, V), MODE)
    total += tl.sum(scores, 1)
    both = shift
    if W > 0:
        near = tl.full((C,), NO_KEYS, tl.float32)
        near_found, near_total = tl.zeros((C, BLOCK_V), tl.float32), tl.zeros((C,), tl.float32)
        for first in range(0, W + C, C):
            j = chunk * C + first + tl.arange(0, C)
            seen = real(present, j, end, SKIP, PADDED)
            y = tokens(key, batch, head, j - SKIP, held, d, D)
            logits = near_logits(x, y, n, j, seen, scale, N, W, MODE)
            higher = tl.maximum(near, tl.max(logits, 1))
            weights, shrunk = tl.exp(logits - higher[:, None]), tl.exp(near - higher)
            worth = tokens(value, batch, head, j - SKIP, held, v, V)
            near_found = near_found * shrunk[:, None] + product(weights, worth, MODE)
            near_total = near_total * shrunk + tl.sum(weights, 1)
            near = higher
        gate = gates(x, gate_bias, gate_linear, gate_quadratic, row, asker, n, N, d, scale, W, D, GIVEN)
        both = tl.maximum(near, shift + gate)
        opened, closed = tl.exp(shift + gate - both), tl.exp(near - both)
        found = found * opened[:, None] + near_found * closed[:, None]
        total = total * opened + near_total * closed
    found = found / tl.maximum(total, epsilon)[:, None]
    at = row * N + n
    inside = (n < N)[:, None] & (v < V)[None, :]
    tl.store(spots(out, batch, asker, n, v), narrow(found, out[0].dtype.element_ty), mask=inside)
    tl.store(joined + at, both, mask=n < N)
    tl.store(sizes + at, total, mask=n < N)
