"""Backwards through `linear_kernels` to keys and values, as `linear_gradients` has it.

One kernel does both. Of features in more than one tile the sum through their softmax is none of any one of them, but

    φ_k(k_j)·∂/∂φ_k(k_j) = ∂/∂w_j = Σ_i P_ij (∂o_i·v_j − Δ_i) = v_j·∂/∂v_j − Σ_i P_ij Δ_i

of far weights P: there values have a kernel of their own, which comes first and finds that, too.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_gradients import add_basis, shares, through_polynomial
from .linear_kernels import near_logits, read_sums
from .linear_rows import basis, features_of, numbers, real
from .tiles import held_as, narrow, power, product, spots, tokens, within


@triton.jit
def after(tops, place, chunk, SPAN, CHUNKS):
    """Of a chunk: the row of its part, the largest w_j up to its end, m, and e^{m − m'}, m' that up to its part's."""
    part, parts = chunk // SPAN, (CHUNKS + SPAN - 1) // SPAN
    last, highest = tl.minimum(part * SPAN + SPAN, CHUNKS), tl.load(tops + chunk + 1)
    return place * parts + part, highest, power(highest - tl.load(tops + last))


@triton.jit
def near_of(
    query, given, joined, y, seen, batch, place, g, n, i, d, v, scale, N, K, G: tl.constexpr, W: tl.constexpr,
    D: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Of the g-th query head of a key's, at i: its row, x, ∂o, and what it weighs the near of keys n, y, with."""
    row = place * G + g
    asker = row % (K * G)
    x, asked = tokens(query, batch, asker, i, N, d, D), tokens(given, batch, asker, i, N, v, V)
    whole = numbers(joined, row, i, N, float("inf"))
    return row, x, asked, power(near_logits(x, y, i, n, seen, scale, N, W, MODE) - whole[:, None])


@triton.jit
def value_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, weights, key_norms, query_norms,
    later, part_later, tops, opened, joined, inner, given, by_value, by_weights, scale,
    N, K, SPAN, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """As `key_gradient_kernel`; by_weights becomes ∂/∂w (B·K, N)."""
    chunk, place = tl.program_id(0) + SKIP // C, tl.program_id(1).to(tl.int64)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    n = chunk * C + tl.arange(0, C)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    y, by_worth = tokens(key, batch, head, n - SKIP, held, d, D), tl.zeros((C, BLOCK_V), tl.float32)
    if chunk < CHUNKS:
        weight = numbers(weights, place, n, N, float("-inf"))
        tops += place * (CHUNKS + 1)
        by_weight = tl.zeros((C,), tl.float32)
        for first in range(0, F, BLOCK_F):
            f = first + tl.arange(0, BLOCK_F)
            omega, level = basis(key_frequency, key_bias, head, f, d, F, D, GIVEN)
            psi = features_of(
                y, omega, level, key_frequency, key_norms, place, n, held, SKIP, N, f, scale, F, GIVEN, MODE
            )
            part, highest, further = after(tops, place, chunk, SPAN, CHUNKS)
            state, ones = read_sums(later, place * CHUNKS + chunk, f, v, F, V)
            part_state, part_ones = read_sums(part_later, part, f, v, F, V)
            state, reach = state.to(tl.float32) + part_state.to(tl.float32) * further, power(weight - highest)
            by_worth += product(psi, held_as(state, MODE), MODE) * reach[:, None]
            by_weight += tl.sum(psi * (ones + further * part_ones)[None, :], 1) * reach
        for g in range(0, G):
            row = place * G + g
            asker = row % (K * G)
            x = tokens(query, batch, asker, n, N, d, D)
            scores = tl.zeros((C, C), tl.float32)
            for first in range(0, F, BLOCK_F):
                f = first + tl.arange(0, BLOCK_F)
                omega, level = basis(key_frequency, key_bias, head, f, d, F, D, GIVEN)
                psi = features_of(
                    y, omega, level, key_frequency, key_norms, place, n, held, SKIP, N, f, scale, F, GIVEN, MODE
                )
                omega, level = basis(query_frequency, query_bias, asker, f, d, F, D, GIVEN)
                phi = features_of(
                    x, omega, level, query_frequency, query_norms, row, n, N, 0, N, f, scale, F, GIVEN, MODE
                )
                scores += product(psi, tl.trans(phi), MODE)
            opening, delta = numbers(opened, row, n, N, float("-inf")), numbers(inner, row, n, N, 0.0)
            scores *= shares(weight[:, None], opening[None, :], n[:, None] <= n[None, :])
            by_worth += product(scores, tokens(given, batch, asker, n, N, v, V), MODE)
            by_weight -= tl.sum(scores * delta[None, :], 1)
        worth = tokens(value, batch, head, n - SKIP, held, v, V)
        by_weight += tl.sum(worth.to(tl.float32) * by_worth, 1)
        tl.store(by_weights + place * N + n, by_weight, mask=n < N)
    if W > 0:
        seen = real(present + batch * held, n, end, SKIP, PADDED)
        for behind in range(0, W + C, C):
            i = (chunk * C - behind) + tl.arange(0, C)
            i = tl.where(i >= 0, i, N)
            for g in range(0, G):
                _, _, asked, near = near_of(
                    query, given, joined, y, seen, batch, place, g, n, i, d, v, scale, N, K, G, W, D, V, MODE
                )
                by_worth += product(tl.trans(near), asked, MODE)
    spot = spots(by_value, batch, head, n - SKIP, v)
    tl.store(spot, narrow(by_worth, by_value[0].dtype.element_ty), mask=(n >= SKIP)[:, None] & within(n, end, v, V))


@triton.jit
def key_gradient_kernel(
    query, key, value, present, query_frequency, query_bias, key_frequency, key_bias, linear, quadratic,
    weights, key_norms, query_norms, later, part_later, tops, opened, joined, inner, given,
    by_key, by_value, by_weights, by_frequency, by_bias, by_linear, by_quadratic, scale,
    N, K, SPAN, CHUNKS, G: tl.constexpr, W: tl.constexpr, SKIP: tl.constexpr, F: tl.constexpr, D: tl.constexpr,
    V: tl.constexpr, DEGREE: tl.constexpr, PADDED: tl.constexpr, GIVEN: tl.constexpr, MODE: tl.constexpr,
    C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks of W + N keys, without those that are none, B·K).

    later: of the queries after each chunk in its part; part_later: of those after the part.
    """
    chunk, place = tl.program_id(0) + SKIP // C, tl.program_id(1).to(tl.int64)
    batch, head, held, end = place // K, place % K, N + W - SKIP, N + W
    n = chunk * C + tl.arange(0, C)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    y = tokens(key, batch, head, n - SKIP, held, d, D)
    worth = tokens(value, batch, head, n - SKIP, held, v, V)
    by_y, by_worth = tl.zeros((C, BLOCK_D), tl.float32), tl.zeros((C, BLOCK_V), tl.float32)
    if chunk < CHUNKS:
        weight = numbers(weights, place, n, N, float("-inf"))
        tops += place * (CHUNKS + 1)
        by_weight = tl.zeros((C,), tl.float32)
        if F > BLOCK_F:
            by_weight = numbers(by_weights, place, n, N, 0.0)
        for first in range(0, F, BLOCK_F):
            f = first + tl.arange(0, BLOCK_F)
            omega, level = basis(key_frequency, key_bias, head, f, d, F, D, GIVEN)
            psi = features_of(
                y, omega, level, key_frequency, key_norms, place, n, held, SKIP, N, f, scale, F, GIVEN, MODE
            )
            psi, by_phi = held_as(psi, MODE), tl.zeros((C, BLOCK_F), tl.float32)
            for g in range(0, G):
                row = place * G + g
                asker = row % (K * G)
                x, asked = tokens(query, batch, asker, n, N, d, D), tokens(given, batch, asker, n, N, v, V)
                opening, delta = numbers(opened, row, n, N, float("-inf")), numbers(inner, row, n, N, 0.0)
                share = shares(weight[:, None], opening[None, :], n[:, None] <= n[None, :])
                query_omega, query_level = basis(query_frequency, query_bias, asker, f, d, F, D, GIVEN)
                phi = features_of(
                    x, query_omega, query_level, query_frequency, query_norms, row, n, N, 0, N, f, scale, F, GIVEN, MODE
                )
                phi = held_as(phi, MODE)
                if F <= BLOCK_F:
                    by_worth += product(product(psi, tl.trans(phi), MODE) * share, asked, MODE)
                by_score = (product(worth, tl.trans(asked), MODE) - delta[None, :]) * share
                by_phi += product(by_score, phi, MODE)
            worth = tokens(value, batch, head, n - SKIP, held, v, V)
            part, highest, further = after(tops, place, chunk, SPAN, CHUNKS)
            state, ones = read_sums(later, place * CHUNKS + chunk, f, v, F, V)
            part_state, part_ones = read_sums(part_later, part, f, v, F, V)
            state, reach = state.to(tl.float32) + part_state.to(tl.float32) * further, power(weight - highest)
            state = held_as(state, MODE)
            if F <= BLOCK_F:
                by_worth += product(psi, state, MODE) * reach[:, None]
            by_phi += product(worth.to(tl.float32) * reach[:, None], tl.trans(state), MODE)
            by_phi += reach[:, None] * (ones + further * part_ones)[None, :]
            phi = psi.to(tl.float32)
            if F <= BLOCK_F:
                by_weight = tl.sum(phi * by_phi, 1)
            if GIVEN:
                spot = by_frequency + (place * held + n - SKIP)[:, None] * F + f[None, :]
                inside = ((n >= SKIP) & (n < N))[:, None] & (f < F)[None, :]
                tl.store(spot, narrow(by_phi, by_frequency.dtype.element_ty), mask=inside)
            else:
                by_logit = held_as(phi * (by_phi - by_weight[:, None]), MODE)
                by_y += product(by_logit, omega, MODE)
                add_basis(by_logit, y, by_frequency, by_bias, head, f, d, scale, F, D, MODE)
        if GIVEN:
            tl.store(by_linear + place * held + n - SKIP, by_weight, mask=(n >= SKIP) & (n < N))
        else:
            by_y += through_polynomial(
                by_weight, tokens(key, batch, head, n - SKIP, held, d, D), linear + head * D, quadratic + head * D,
                by_linear + head * D, by_quadratic + head * D, d, scale, D, DEGREE,
            )  # fmt: skip
    if W > 0:
        seen = real(present + batch * held, n, end, SKIP, PADDED)
        for behind in range(0, W + C, C):
            # Of queries that are at i + W, from the latest on: i < j ≤ i + W.
            i = (chunk * C - behind) + tl.arange(0, C)
            i = tl.where(i >= 0, i, N)
            for g in range(0, G):
                row, x, asked, near = near_of(
                    query, given, joined, y, seen, batch, place, g, n, i, d, v, scale, N, K, G, W, D, V, MODE
                )
                delta = numbers(inner, row, i, N, 0.0)
                if F <= BLOCK_F:
                    by_worth += product(tl.trans(near), asked, MODE)
                by_near = near * (product(asked, tl.trans(worth), MODE) - delta[:, None])
                by_y += product(tl.trans(by_near), x, MODE) * scale
    there = (n >= SKIP)[:, None]
    spot = spots(by_key, batch, head, n - SKIP, d)
    tl.store(spot, narrow(by_y * scale, by_key[0].dtype.element_ty), mask=there & within(n, end, d, D))
    if F <= BLOCK_F:
        spot = spots(by_value, batch, head, n - SKIP, v)
        tl.store(spot, narrow(by_worth, by_value[0].dtype.element_ty), mask=there & within(n, end, v, V))
