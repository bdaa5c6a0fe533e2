"""Backwards through `linear_kernels`, from the end of a text to its beginning.

Of all weights P_ij that query i gives, near ones e^{q_i·k_j − λ_i} and far ones ρ_i e^{w_j − s_i} φ_q(q_i)·φ_k(k_j),

    ∂/∂ log P_ij = P_ij (∂o_i·v_j − Δ_i),    Δ_i = ∂o_i·o_i,    ∂/∂v_j = Σ_i P_ij ∂o_i

λ_i is the shift of both parts plus the logarithm of their size, ρ_i = e^{s_i + g_i − λ_i}. With γ_i = ρ_i [∂o_i, −Δ_i],

    ∂/∂φ_q(q_i) = Σ_j e^{w_j − s_i} (γ_i·[v_j, 1]) φ_k(k_j),    ∂/∂φ_k(k_j) = Σ_i e^{w_j − s_i} (γ_i·[v_j, 1]) φ_q(q_i)
    ∂/∂w_j = φ_k(k_j)·∂/∂φ_k(k_j),    ∂/∂g_i = φ_q(q_i)·∂/∂φ_q(q_i) = r_i (∂o_i·f_i − Δ_i)

f_i is what the linear part gives alone, r_i its share in o_i: of features in more than one tile the sum over all is
needed before there is any, and is found from these; without a window it is ∂o_i·o_i − Δ_i.

What keys need of later chunks is Σ_i e^{m − s_i} φ_q(q_i) γ_iᵀ, m the largest w up to the end of theirs: e^{m − s_i} is
at most 1. Where a size is below ε it is none that depends on anything, and Δ_i = 0.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_kernels import before, near_logits, read_sums, write_sums
from .linear_rows import basis, features_of, numbers, real
from .tiles import LOG2_E, held_as, narrow, power, product, spots, summed, tokens, within


@triton.jit
def shares(weight, opened, seen):
    """e^{w_j + g_i − λ_i} of what is seen."""
    return tl.exp2(tl.where(seen, weight * LOG2_E + opened * LOG2_E, float("-inf")))


@triton.jit
def through_polynomial(
    by_value, x, linear, quadratic, by_linear, by_quadratic, d, scale, D: tl.constexpr, DEGREE: tl.constexpr
):
    """From the gradient for `polynomial` that for scaled x; those for u and c are added to what there is."""
    z = x.to(tl.float32) * scale
    slope, share = z * 0.0, by_value[:, None] * z
    if DEGREE >= 1:
        slope += tl.load(linear + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        tl.atomic_add(by_linear + d, tl.sum(share, 0), mask=d < D, sem="relaxed")
    if DEGREE >= 2:
        slope += z * (2 * tl.load(quadratic + d, mask=d < D, other=0.0).to(tl.float32))[None, :]
        tl.atomic_add(by_quadratic + d, tl.sum(share * z, 0), mask=d < D, sem="relaxed")
    return by_value[:, None] * slope


@triton.jit
def add_basis(
    by_logit, x, by_frequency, by_bias, head, f, d, scale, F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr
):
    """From the gradient for the logits of rows x those for Ω and b, to what other programs have found for a head's."""
    by_omega = product(tl.trans(by_logit), x, MODE) * scale
    spot = by_frequency + head * F * D + f[:, None] * D + d[None, :]
    tl.atomic_add(spot, by_omega, mask=within(f, F, d, D), sem="relaxed")
    by_level = summed(by_logit, tl.full((by_logit.shape[0],), 1.0, tl.float32), MODE)
    tl.atomic_add(by_bias + head * F + f, by_level, mask=f < F, sem="relaxed")


@triton.jit
def query_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, gate_linear, gate_quadratic,
    weights, key_norms, query_norms, sums, peaks, part_sums, part_tops, opened, joined, sizes, out, far, far_shares,
    given, by_query, by_frequency, by_bias, by_gate_bias, by_gate_linear, by_gate_quadratic, inner, scale, epsilon,
    N, K, SPAN, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B·H); inner becomes Δ (B, H, N)."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place, asker = row // G, row % (K * G)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    n = chunk * C + tl.arange(0, C)
    d, v, at = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), row * N + n
    x = tokens(query, batch, asker, n, N, d, D)
    asked = tokens(given, batch, asker, n, N, v, V)
    along = tl.sum(asked.to(tl.float32) * tokens(out, batch, asker, n, N, v, V).to(tl.float32), 1)
    delta = tl.where(numbers(sizes, row, n, N, 1.0) >= epsilon, along, 0.0)
    tl.store(inner + at, delta, mask=n < N)
    # Of one tile of features it is taken from these, whose rounding is then in it, too, and cancels.
    by_gate = along - delta
    if F > BLOCK_F and W > 0:
        along = tl.sum(asked.to(tl.float32) * tokens(far, batch, asker, n, N, v, V).to(tl.float32), 1)
        by_gate = (along - delta) * numbers(far_shares, row, n, N, 0.0)
    opening = numbers(opened, row, n, N, float("-inf"))
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    weight = numbers(weights, place, n, N, float("-inf"))
    part, part_top, peak, top = before(peaks, part_tops, place, chunk, SPAN, CHUNKS)
    worth = tokens(value, batch, head, n - SKIP, held, v, V)
    by_score = product(asked, tl.trans(worth), MODE) - delta[:, None]
    by_score *= shares(weight[None, :], opening[:, None], n[None, :] <= n[:, None])
    by_x = tl.zeros((C, BLOCK_D), tl.float32)
    for first in range(0, F, BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        # One tile as wide as there are features after another: more do not fit into registers.
        omega, level = basis(key_frequency, key_bias, head, f, d, F, D, GIVEN)
        phi = features_of(y, omega, level, key_frequency, key_norms, place, n, held, SKIP, N, f, scale, F, GIVEN, MODE)
        by_phi = product(by_score, phi, MODE)
        state, ones = read_sums(sums, place * CHUNKS + chunk, f, v, F, V)
        by_phi += product(asked.to(tl.float32) * power(peak + opening)[:, None], tl.trans(state), MODE)
        state, part_ones = read_sums(part_sums, part, f, v, F, V)
        by_phi += product(asked.to(tl.float32) * power(part_top + opening)[:, None], tl.trans(state), MODE)
        ones = ones * power(peak - top) + part_ones * power(part_top - top)
        by_phi -= (delta * power(top + opening))[:, None] * ones[None, :]
        omega, level = basis(query_frequency, query_bias, asker, f, d, F, D, GIVEN)
        phi = features_of(x, omega, level, query_frequency, query_norms, row, n, N, 0, N, f, scale, F, GIVEN, MODE)
        if F <= BLOCK_F:
            by_gate = tl.sum(phi * by_phi, 1)
        if GIVEN:
            spot = by_frequency + at[:, None] * F + f[None, :]
            tl.store(spot, narrow(by_phi, by_frequency.dtype.element_ty), mask=within(n, N, f, F))
        else:
            by_logit = held_as(phi * (by_phi - by_gate[:, None]), MODE)
            by_x += product(by_logit, omega, MODE)
            add_basis(by_logit, x, by_frequency, by_bias, asker, f, d, scale, F, D, MODE)
    if W > 0 and GIVEN:
        tl.store(by_gate_bias + at, by_gate, mask=n < N)
    elif W > 0:
        tl.atomic_add(by_gate_bias + asker, tl.sum(by_gate, 0), sem="relaxed")
        by_x += through_polynomial(
            by_gate, tokens(query, batch, asker, n, N, d, D), gate_linear + asker * D, gate_quadratic + asker * D,
            by_gate_linear + asker * D, by_gate_quadratic + asker * D, d, scale, D, 2,
        )  # fmt: skip
    if W > 0:
        whole = numbers(joined, row, n, N, float("inf"))
        for behind in range(0, W + C, C):
            j = chunk * C + behind + tl.arange(0, C)
            seen = real(present + batch * held, j, end, SKIP, PADDED)
            y = tokens(key, batch, head, j - SKIP, held, d, D)
            near = power(near_logits(x, y, n, j, seen, scale, N, W, MODE) - whole[:, None])
            worth = tokens(value, batch, head, j - SKIP, held, v, V)
            by_near = near * (product(asked, tl.trans(worth), MODE) - delta[:, None])
            by_x += product(by_near, y, MODE) * scale
    spot = spots(by_query, batch, asker, n, d)
    tl.store(spot, narrow(by_x * scale, by_query[0].dtype.element_ty), mask=within(n, N, d, D))


@triton.jit
def later_kernel(
    query, given, query_frequency, query_bias, query_norms, tops, opened, inner, later, part_later, scale,
    N, K, SPAN, CHUNKS, G: tl.constexpr, F: tl.constexpr, D: tl.constexpr, V: tl.constexpr, GIVEN: tl.constexpr,
    MODE: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (parts, B·K, tiles of features): Σ_i e^{m − s_i} φ_q(q_i) γ_i of a part's queries, of those after each chunk
    (later), m the largest weight up to its end, and of all (part_later), m that before the part."""
    part, place = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch = place // K
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    f = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    tops += place * (CHUNKS + 1)
    state, ones = tl.zeros((BLOCK_F, BLOCK_V), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    first, last = part * SPAN, tl.minimum(part * SPAN + SPAN, CHUNKS)
    for back in range(first, last):
        chunk = last - 1 - (back - first)
        write_sums(later, place * CHUNKS + chunk, state, ones, f, v, F, V)
        n = chunk * C + tl.arange(0, C)
        top = tl.load(tops + chunk)
        shrunk = power(top - tl.load(tops + chunk + 1))
        state, ones = state * shrunk, ones * shrunk
        for g in range(0, G):
            row = place * G + g
            asker = row % (K * G)
            x, asked = tokens(query, batch, asker, n, N, d, D), tokens(given, batch, asker, n, N, v, V)
            omega, level = basis(query_frequency, query_bias, asker, f, d, F, D, GIVEN)
            phi = features_of(x, omega, level, query_frequency, query_norms, row, n, N, 0, N, f, scale, F, GIVEN, MODE)
            phi, share = held_as(phi, MODE), power(top + numbers(opened, row, n, N, float("-inf")))
            state += product(tl.trans(phi), asked.to(tl.float32) * share[:, None], MODE)
            ones -= summed(phi, numbers(inner, row, n, N, 0.0) * share, MODE)
    write_sums(part_later, place * tl.num_programs(0) + part, state, ones, f, v, F, V)
