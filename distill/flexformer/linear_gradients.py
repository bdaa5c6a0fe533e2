"""Backwards through `linear_kernels`, from the end of a text to its beginning.

Of all weights P_ij that query i gives, near ones e^{q_i·k_j − λ_i} and far ones ρ_i e^{w_j − s_i} φ_q(q_i)·φ_k(k_j),

    ∂/∂ log P_ij = P_ij (∂o_i·v_j − Δ_i),    Δ_i = ∂o_i·o_i,    ∂/∂v_j = Σ_i P_ij ∂o_i

λ_i is the shift of both parts plus the logarithm of their size, ρ_i = e^{s_i + g_i − λ_i}. With γ_i = ρ_i [∂o_i, −Δ_i],

    ∂/∂φ_q(q_i) = Σ_j e^{w_j − s_i} (γ_i·[v_j, 1]) φ_k(k_j),    ∂/∂φ_k(k_j) = Σ_i e^{w_j − s_i} (γ_i·[v_j, 1]) φ_q(q_i)
    ∂/∂w_j = φ_k(k_j)·∂/∂φ_k(k_j),    ∂/∂g_i = φ_q(q_i)·∂/∂φ_q(q_i)

What keys need of later chunks is Σ_i e^{m − s_i} φ_q(q_i) γ_iᵀ, m the largest w up to the end of theirs: no exponential
passes 1. Where a size is below ε it is none that depends on anything, and Δ_i = 0.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_kernels import features_of, gates, key_weight, near_logits, real, shifted
from .tiles import held_as, narrow, product, rows, spots, tokens


@triton.jit
def logarithm(x):
    """As one instruction, and not as a branch for each kind of number."""
    return tl.log2(x) * 0.6931471805599453


@triton.jit
def asking(given, joined, sizes, inner, batch, asker, row, n, v, N, V: tl.constexpr, epsilon):
    """∂o_i, Δ_i and λ_i of queries n: ∞ beyond the last, so that their weights are none."""
    asked = tokens(given, batch, asker, n, N, v, V)
    size = tl.maximum(tl.load(sizes + row * N + n, mask=n < N, other=1.0), epsilon)
    whole = tl.load(joined + row * N + n, mask=n < N, other=float("inf")) + logarithm(size)
    return asked, tl.load(inner + row * N + n, mask=n < N, other=0.0), whole


@triton.jit
def through_softmax(
    phi, by_phi, x, by_frequency, by_bias, f, d, scale, F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr
):
    """From the gradient for φ that for its logits, and φ·∂/∂φ; those for Ω and b are added to what there is."""
    along = tl.sum(phi * by_phi, 1)
    by_logit = phi * (by_phi - along[:, None])
    for_frequency = product(tl.trans(by_logit), x, MODE) * scale
    tl.atomic_add(by_bias + f, tl.sum(by_logit, 0), mask=f < F, sem="relaxed")
    spot, inside = by_frequency + f[:, None] * D + d[None, :], (f < F)[:, None] & (d < D)[None, :]
    tl.atomic_add(spot, for_frequency, mask=inside, sem="relaxed")
    return by_logit, along


@triton.jit
def through_polynomial(
    by_value, x, linear, quadratic, by_linear, by_quadratic, d, scale, D: tl.constexpr, DEGREE: tl.constexpr
):
    """From the gradient for `polynomial` that for scaled x; those for u and c are added to what there is."""
    z = x.to(tl.float32) * scale
    by_z = z * 0.0
    if DEGREE >= 1:
        by_z += by_value[:, None] * tl.load(linear + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        tl.atomic_add(by_linear + d, tl.sum(by_value[:, None] * z, 0), mask=d < D, sem="relaxed")
    if DEGREE >= 2:
        steep = tl.load(quadratic + d, mask=d < D, other=0.0).to(tl.float32)
        by_z += 2 * by_value[:, None] * z * steep[None, :]
        tl.atomic_add(by_quadratic + d, tl.sum(by_value[:, None] * z * z, 0), mask=d < D, sem="relaxed")
    return by_z


@triton.jit
def query_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    gate_bias, gate_linear, gate_quadratic, sums, tops, joined, sizes, out, given,
    by_query, by_frequency, by_bias, by_gate_bias, by_gate_linear, by_gate_quadratic, inner, scale, epsilon,
    N, K, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H); inner becomes Δ (B, H, N)."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    at = row * N + n
    x = tokens(query, batch, asker, n, N, d, D)
    asked = tokens(given, batch, asker, n, N, v, V)
    got = tokens(out, batch, asker, n, N, v, V)
    size = tl.load(sizes + at, mask=n < N, other=1.0)
    delta = tl.where(size >= epsilon, tl.sum(asked.to(tl.float32) * got.to(tl.float32), 1), 0.0)
    tl.store(inner + at, delta, mask=n < N)
    whole = tl.load(joined + at, mask=n < N, other=float("inf")) + logarithm(tl.maximum(size, epsilon))
    gate = gates(x, gate_bias, gate_linear, gate_quadratic, row, asker, n, N, d, scale, W, D, GIVEN)

    present += batch * held
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    there = real(present, n, N, SKIP, PADDED)
    weight = key_weight(y, there, linear, quadratic, place, head, n - SKIP, held, d, scale, D, DEGREE, GIVEN)
    top = tl.load(tops + place * (CHUNKS + 1) + chunk)
    shift, decay = shifted(weight, n, top)
    share = tl.exp(shift + gate - whole)
    worth = tokens(value, batch, head, n - SKIP, held, v, V)
    by_score = held_as((product(asked, tl.trans(worth), MODE) - delta[:, None]) * share[:, None] * decay, MODE)
    # One tile as wide as there are features after another: more do not fit into registers.
    phi = features_of(y, key_frequency, key_bias, place, head, n - SKIP, held, f, d, scale, F, D, GIVEN, MODE)
    by_phi = product(by_score, phi, MODE)
    reach = share * tl.exp(top - shift)
    spot = sums + (place * CHUNKS + chunk) * F * (V + 1)
    by_phi += product(asked.to(tl.float32) * reach[:, None], tl.trans(rows(spot, f, F, v, V)), MODE)
    ones = tl.load(spot + F * V + f, mask=f < F, other=0.0).to(tl.float32)
    by_phi -= (delta * reach)[:, None] * ones[None, :]
    phi = features_of(x, query_frequency, query_bias, row, asker, n, N, f, d, scale, F, D, GIVEN, MODE)
    if GIVEN:
        by_x = tl.zeros((C, BLOCK_D), tl.float32)
        spot, inside = by_frequency + at[:, None] * F + f[None, :], (n < N)[:, None] & (f < F)[None, :]
        tl.store(spot, narrow(by_phi, by_frequency.dtype.element_ty), mask=inside)
        if W > 0:
            tl.store(by_gate_bias + at, tl.sum(phi * by_phi, 1), mask=n < N)
    else:
        by_logit, by_gate = through_softmax(
            phi, by_phi, x, by_frequency + asker * F * D, by_bias + asker * F, f, d, scale, F, D, MODE
        )
        by_x = product(by_logit, rows(query_frequency + asker * F * D, f, F, d, D), MODE)
        if W > 0:
            tl.atomic_add(by_gate_bias + asker, tl.sum(by_gate, 0), sem="relaxed")
            by_x += through_polynomial(
                by_gate, tokens(query, batch, asker, n, N, d, D), gate_linear + asker * D, gate_quadratic + asker * D,
                by_gate_linear + asker * D, by_gate_quadratic + asker * D, d, scale, D, 2,
            )  # fmt: skip
    if W > 0:
        for behind in range(0, W + C, C):
            j = chunk * C + behind + tl.arange(0, C)
            seen = real(present, j, end, SKIP, PADDED)
            y = tokens(key, batch, head, j - SKIP, held, d, D)
            near = tl.exp(near_logits(x, y, n, j, seen, scale, N, W, MODE) - whole[:, None])
            worth = tokens(value, batch, head, j - SKIP, held, v, V)
            by_near = near * (product(asked, tl.trans(worth), MODE) - delta[:, None])
            by_x += product(by_near, y, MODE) * scale
    inside = (n < N)[:, None] & (d < D)[None, :]
    tl.store(spots(by_query, batch, asker, n, d), narrow(by_x * scale, by_query[0].dtype.element_ty), inside)


@triton.jit
def later_kernel(
    query, given, query_frequency, query_bias, gate_bias, gate_linear, gate_quadratic, tops, joined, sizes, inner,
    later, scale, epsilon,
    N, K, CHUNKS, G: tl.constexpr, W: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·K): Σ_i e^{m − s_i} φ_q(q_i) γ_i of a chunk's queries, m the largest weight before the chunk."""
    chunk, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch = place // K
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    top = tl.load(tops + place * (CHUNKS + 1) + chunk)
    state, ones = tl.zeros((BLOCK_F, BLOCK_V), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    for g in range(0, G):
        row = place * G + g
        asker = row % (K * G)
        x = tokens(query, batch, asker, n, N, d, D)
        asked, delta, whole = asking(given, joined, sizes, inner, batch, asker, row, n, v, N, V, epsilon)
        gate = gates(x, gate_bias, gate_linear, gate_quadratic, row, asker, n, N, d, scale, W, D, GIVEN)
        phi = features_of(x, query_frequency, query_bias, row, asker, n, N, f, d, scale, F, D, GIVEN, MODE)
        phi = phi * tl.exp(top + gate - whole)[:, None]
        state += product(tl.trans(phi), asked, MODE)
        ones -= tl.sum(phi * delta[:, None], 0)
    spot = later + (place * CHUNKS + chunk) * F * (V + 1)
    inside = (f < F)[:, None] & (v < V)[None, :]
    tl.store(spot + f[:, None] * V + v[None, :], narrow(state, later.dtype.element_ty), mask=inside)
    tl.store(spot + F * V + f, narrow(ones, later.dtype.element_ty), mask=f < F)


@triton.jit
def key_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    gate_bias, gate_linear, gate_quadratic, later, tops, joined, sizes, inner, given,
    by_key, by_value, by_frequency, by_bias, by_linear, by_quadratic, scale, epsilon,
    N, K, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks of W + N keys, without those that are none, B·K); later: of the queries after each chunk."""
    chunk, place = tl.program_id(0) + SKIP // C, tl.program_id(1).to(tl.int64)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    present += batch * held
    n = chunk * C + tl.arange(0, C)
    d, f, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_V)
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    worth = tokens(value, batch, head, n - SKIP, held, v, V)
    by_y, by_worth = tl.zeros((C, BLOCK_D), tl.float32), tl.zeros((C, BLOCK_V), tl.float32)
    if chunk < CHUNKS:
        there = real(present, n, N, SKIP, PADDED)
        weight = key_weight(y, there, linear, quadratic, place, head, n - SKIP, held, d, scale, D, DEGREE, GIVEN)
        top = tl.load(tops + place * (CHUNKS + 1) + chunk)
        shift, decay = shifted(weight, n, top)
        reach = tl.exp(weight - tl.load(tops + place * (CHUNKS + 1) + chunk + 1))
        psi = features_of(y, key_frequency, key_bias, place, head, n - SKIP, held, f, d, scale, F, D, GIVEN, MODE)
        psi = held_as(psi, MODE)
        by_phi = tl.zeros((C, BLOCK_F), tl.float32)
        for g in range(0, G):
            row = place * G + g
            asker = row % (K * G)
            x = tokens(query, batch, asker, n, N, d, D)
            asked, delta, whole = asking(given, joined, sizes, inner, batch, asker, row, n, v, N, V, epsilon)
            gate = gates(x, gate_bias, gate_linear, gate_quadratic, row, asker, n, N, d, scale, W, D, GIVEN)
            share = tl.exp(shift + gate - whole)[:, None] * decay
            phi = features_of(x, query_frequency, query_bias, row, asker, n, N, f, d, scale, F, D, GIVEN, MODE)
            scores = product(phi, tl.trans(psi), MODE) * share
            by_worth += product(tl.trans(scores), asked, MODE)
            by_score = (product(asked, tl.trans(worth), MODE) - delta[:, None]) * share
            by_phi += product(tl.trans(by_score), phi, MODE)
        spot = later + (place * CHUNKS + chunk) * F * (V + 1)
        state = rows(spot, f, F, v, V)
        by_phi += product(worth.to(tl.float32) * reach[:, None], tl.trans(state), MODE)
        by_phi += reach[:, None] * tl.load(spot + F * V + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
        # Features once more, and keys, as queries above: in between there is no room for them.
        phi = features_of(y, key_frequency, key_bias, place, head, n - SKIP, held, f, d, scale, F, D, GIVEN, MODE)
        by_worth += product(phi * reach[:, None], state, MODE)
        if GIVEN:
            at, known = place * held + n - SKIP, (n >= SKIP) & (n < N)
            spot, inside = by_frequency + at[:, None] * F + f[None, :], known[:, None] & (f < F)[None, :]
            tl.store(spot, narrow(by_phi, by_frequency.dtype.element_ty), mask=inside)
            tl.store(by_linear + at, tl.sum(phi * by_phi, 1), mask=known)
        else:
            by_logit, by_weight = through_softmax(
                phi, by_phi, y, by_frequency + head * F * D, by_bias + head * F, f, d, scale, F, D, MODE
            )
            by_y += product(by_logit, rows(key_frequency + head * F * D, f, F, d, D), MODE)
            by_y += through_polynomial(
                by_weight, tokens(key, batch, head, n - SKIP, held, d, D), linear + head * D, quadratic + head * D,
                by_linear + head * D, by_quadratic + head * D, d, scale, D, DEGREE,
            )  # fmt: skip
    if W > 0:
        seen = real(present, n, end, SKIP, PADDED)
        for behind in range(0, W + C, C):
            # Of queries that are at i + W, from the latest on: i < j ≤ i + W.
            i = (chunk * C - behind) + tl.arange(0, C)
            i = tl.where(i >= 0, i, N)
            for g in range(0, G):
                row = place * G + g
                asker = row % (K * G)
                x = tokens(query, batch, asker, i, N, d, D)
                asked, delta, whole = asking(given, joined, sizes, inner, batch, asker, row, i, v, N, V, epsilon)
                near = tl.exp(near_logits(x, y, i, n, seen, scale, N, W, MODE) - whole[:, None])
                by_worth += product(tl.trans(near), asked, MODE)
                by_near = near * (product(asked, tl.trans(worth), MODE) - delta[:, None])
                by_y += product(tl.trans(by_near), x, MODE) * scale
    there = ((n >= SKIP) & (n < end))[:, None]
    inside = there & (d < D)[None, :]
    tl.store(spots(by_key, batch, head, n - SKIP, d), narrow(by_y * scale, by_key[0].dtype.element_ty), inside)
    inside = there & (v < V)[None, :]
    tl.store(spots(by_value, batch, head, n - SKIP, v), narrow(by_worth, by_value[0].dtype.element_ty), inside)
