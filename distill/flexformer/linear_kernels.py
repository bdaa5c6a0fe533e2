"""Causal linear attention of exponential features, fused with the feature map, in Triton: no N × F tensor in memory.

    φ(x) = softmax(Ω x + b),    o_i e^{−s_i} = Σ_{j ≤ i} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) [v_j, 1]

as `engine.chunked` has it, in chunks of C tokens: every chunk's own sums, a scan over these, and then the outputs, each
from the sums before its chunk and from the chunk itself. The shift s_i is the largest w_j so far. Backwards the same
runs from the end: with g_i the gradient of o_i e^{−s_i}, which has V + 1 columns,

    ∂/∂φ_q(q_i) = Σ_{j ≤ i} e^{w_j − s_i} (g_i·[v_j, 1]) φ_k(k_j)
    ∂/∂φ_k(k_j) = Σ_{i ≥ j} e^{w_j − s_i} (g_i·[v_j, 1]) φ_q(q_i)
    ∂/∂v_j      = Σ_{i ≥ j} e^{w_j − s_i} φ_q(q_i)·φ_k(k_j) g_i
    ∂/∂w_j      = φ_k(k_j)·∂/∂φ_k(k_j)

What keys need of later chunks is Σ_i e^{m − s_i} φ_q(q_i) g_iᵀ, m the largest w up to the end of theirs: no exponential
passes 1. Features are made anew in each kernel, and their own gradients are taken in it.

Chunks are rows of C of (·, N, ·), masked at the end; sums are (B·K, chunks, F, V) and (B·K, chunks, F), in float32.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

#: Stands for the maximum of no keys at all: `engine.NO_KEYS`.
NO_KEYS: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def product(a, b, MODE: tl.constexpr):
    """Of float32, as tensor cores have it ("tf32") or as exact as it is ("tf32x3")."""
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=MODE)


@triton.jit
def rows(pointer, n, count, d, width: tl.constexpr):
    """Rows n of a matrix of `width` columns, 0 beyond its ends."""
    inside = (n < count)[:, None] & (d < width)[None, :]
    return tl.load(pointer + n[:, None] * width + d[None, :], mask=inside, other=0.0)


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
def output_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    sums, sizes, before, out, shifts, scale,
    N, K, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DEGREE: tl.constexpr,
    MODE: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H): o_i e^{−s_i} (B, H, N, V + 1) and, of each key-value head, s_i (B, K, N)."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    head = place % K
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    x = rows(key + place * N * D, n, N, d, D).to(tl.float32) * scale
    weight = key_weight(x, n, N, linear + head * D, quadratic + head * D, present + place // K * N, d, D, DEGREE)
    top = tl.load(before + place * CHUNKS + chunk)
    shift, decay = shifted(weight, n, top)
    key_phi = features(x, key_frequency + head * F * D, key_bias + head * F, f, d, F, D, MODE)
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
    head = place % K
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    x = rows(key + place * N * D, n, N, d, D).to(tl.float32) * scale
    weight = key_weight(x, n, N, linear + head * D, quadratic + head * D, present + place // K * N, d, D, DEGREE)
    top = tl.load(before + place * CHUNKS + chunk)
    shift, decay = shifted(weight, n, top)
    key_phi = features(x, key_frequency + head * F * D, key_bias + head * F, f, d, F, D, MODE)
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
    x = rows(key + place * N * D, n, N, d, D).to(tl.float32) * scale
    weight = key_weight(x, n, N, linear + head * D, quadratic + head * D, present + place // K * N, d, D, DEGREE)
    top = tl.load(before + place * CHUNKS + chunk)
    decay = shifted(weight, n, top)[1]
    frequency = key_frequency + head * F * D
    phi = features(x, frequency, key_bias + head * F, f, d, F, D, MODE)
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
    by_x = through_softmax(phi, by_phi, x, frequency, by_frequency + head * F * D, by_bias + head * F, f, d, F, D, MODE)
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
