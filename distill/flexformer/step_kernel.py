"""One token through a layer's mixer as one Triton kernel: exponential features, state, window and normaliser.

A program does all of one text's key-value head: it takes the key that leaves the window into the state (B, K, F, D+1),
reads the state and the window with each of the head's G queries, and shifts the window. Nothing but the new memory and
the outputs is written. Arithmetic is float32. The formulas are those of `engine.recurrent`, `window.Window` and
`normaliser.divide`, which tests hold it to.
"""

try:
    import triton
    import triton.language as tl
    from triton import next_power_of_2 as next_power_of_2
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise


@triton.jit
def frequencies(pointer, f, d, F: tl.constexpr, D: tl.constexpr):
    return tl.load(pointer + f[:, None] * D + d[None, :], mask=(f < F)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def features(rows, bias, x, f, F: tl.constexpr):
    """softmax(Ω x + b), 0 beyond the last feature."""
    logits = tl.sum(rows.to(tl.float32) * x[None, :], 1) + bias.to(tl.float32)
    logits = tl.where(f < F, logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 0))
    return weights / tl.sum(weights, 0)


@triton.jit
def polynomial(linear, quadratic, x, d, D: tl.constexpr, DEGREE: tl.constexpr):
    """u·x + c·x², as far as DEGREE says."""
    found = 0.0
    if DEGREE >= 1:
        found += tl.sum(tl.load(linear + d, mask=d < D, other=0.0).to(tl.float32) * x, 0)
    if DEGREE >= 2:
        found += tl.sum(tl.load(quadratic + d, mask=d < D, other=0.0).to(tl.float32) * x * x, 0)
    return found


@triton.jit
def step_kernel(
    query, key, value, real, out,
    sums, maximum, seen, keys, values, present,
    new_sums, new_maximum, new_seen, new_keys, new_values, new_present,
    query_frequency, query_bias, key_frequency, key_bias,
    weight_1, weight_2, gate_bias, gate_1, gate_2, log_rate,
    scale, epsilon,
    K: tl.constexpr, G: tl.constexpr, F: tl.constexpr, R: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    W: tl.constexpr, DEGREE: tl.constexpr, DECAYS: tl.constexpr, PADDED: tl.constexpr,
    NO_KEYS: tl.constexpr, FORGOTTEN: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Grid (B·K,). Shapes as `memory.Memory` has them, all contiguous."""
    place = tl.program_id(0).to(tl.int64)
    text, head = place // K, place % K
    f, d, v, r = tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_R)
    here = tl.full((), 1, tl.int32)
    if PADDED:
        here = tl.load(real + text).to(tl.int32)

    # What does not wait for anything is asked for before anything waits.
    key_now = tl.load(key + place * D + d, mask=d < D, other=0.0)
    value_now = tl.load(value + place * V + v, mask=v < V, other=0.0)
    if W > 0:
        leaving = tl.load(keys + place * W * D + d, mask=d < D, other=0.0)
        worth = tl.load(values + place * W * V + v, mask=v < V, other=0.0).to(tl.float32)
        there = tl.load(present + text * W).to(tl.int32)
    else:
        leaving, worth, there = key_now, value_now.to(tl.float32), here
    key_rows = frequencies(key_frequency + head * F * D, f, d, F, D)
    key_shift = tl.load(key_bias + head * F + f, mask=f < F, other=0.0)
    spot = (place * F + f) * (V + 1)
    inside = (f < F)[:, None] & (v < V)[None, :]
    state = tl.load(sums + spot[:, None] + v[None, :], mask=inside, other=0.0)
    size = tl.load(sums + spot + V, mask=f < F, other=0.0)
    before = tl.load(maximum + place * R + r, mask=r < R, other=NO_KEYS)
    group = f // (F // R)
    old = tl.load(maximum + place * R + group, mask=f < F, other=NO_KEYS)
    if W > 0:
        w = tl.arange(0, BLOCK_W)
        near = (place * W + w)[:, None]
        of_key, of_value = (w < W - 1)[:, None] & (d < D)[None, :], (w < W - 1)[:, None] & (v < V)[None, :]
        near_keys = tl.load(keys + (near + 1) * D + d[None, :], mask=of_key, other=0.0)
        near_values = tl.load(values + (near + 1) * V + v[None, :], mask=of_value, other=0.0)
        near_there = tl.load(present + text * W + 1 + w, mask=w < W - 1, other=0)

    # The key that leaves the window, or that never was in one.
    x = leaving.to(tl.float32) * scale
    log_weight = polynomial(weight_1 + head * D, weight_2 + head * D, x, d, D, DEGREE)
    log_weight = tl.where(there != 0, log_weight, float("-inf"))
    if DECAYS:
        fade = -tl.exp(tl.load(log_rate + head * R + r, mask=r < R, other=0.0).to(tl.float32))
        before += tl.where(there != 0, tl.maximum(fade, FORGOTTEN), 0.0)
        slower = -tl.exp(tl.load(log_rate + head * R + group, mask=f < F, other=0.0).to(tl.float32))
        old += tl.where(there != 0, tl.maximum(slower, FORGOTTEN), 0.0)
    # Every group's maximum, and the largest of them, which is the shift.
    after = tl.maximum(tl.maximum(before, log_weight), NO_KEYS)
    tl.store(new_maximum + place * R + r, after, mask=r < R)
    shift = tl.max(tl.where(r < R, after, float("-inf")), 0)
    new = tl.maximum(tl.maximum(old, log_weight), NO_KEYS)
    added = features(key_rows, key_shift, x, f, F) * tl.exp(log_weight - new)
    kept = tl.exp(old - new)
    state = state * kept[:, None] + added[:, None] * worth[None, :]
    size = size * kept + added
    tl.store(new_sums + spot[:, None] + v[None, :], state, mask=inside)
    tl.store(new_sums + spot + V, size, mask=f < F)
    if W > 0:
        tl.store(new_keys + near * D + d[None, :], near_keys, mask=of_key)
        tl.store(new_values + near * V + v[None, :], near_values, mask=of_value)
        tl.store(new_keys + (place * W + W - 1) * D + d, key_now, mask=d < D)
        tl.store(new_values + (place * W + W - 1) * V + v, value_now, mask=v < V)

    for g in range(0, G):
        row = place * G + g
        asker = row % (K * G)
        asked = tl.load(query + row * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
        rows = frequencies(query_frequency + asker * F * D, f, d, F, D)
        bias = tl.load(query_bias + asker * F + f, mask=f < F, other=0.0)
        read = features(rows, bias, asked, f, F) * tl.exp(new - shift)
        found, found_size = tl.sum(read[:, None] * state, 0), tl.sum(read * size, 0)
        if W > 0:
            logits = tl.sum(near_keys.to(tl.float32) * scale * asked[None, :], 1)
            logits = tl.where((w < W - 1) & (near_there != 0), logits, float("-inf"))
            own = tl.where(here != 0, tl.sum(key_now.to(tl.float32) * scale * asked, 0), float("-inf"))
            near_shift = tl.maximum(tl.maximum(tl.max(logits, 0), own), NO_KEYS)
            weights, own = tl.exp(logits - near_shift), tl.exp(own - near_shift)
            near_found = tl.sum(weights[:, None] * near_values.to(tl.float32), 0) + own * value_now.to(tl.float32)
            near_size = tl.sum(weights, 0) + own
            gate = tl.load(gate_bias + asker).to(tl.float32)
            gate += polynomial(gate_1 + asker * D, gate_2 + asker * D, asked, d, D, 2)
            both = tl.maximum(near_shift, shift + gate)
            opened, closed = tl.exp(shift + gate - both), tl.exp(near_shift - both)
            found, found_size = near_found * closed + found * opened, near_size * closed + found_size * opened
        least = tl.where(found_size < 0, -epsilon, epsilon)
        found_size = tl.where(tl.abs(found_size) >= epsilon, found_size, least)
        tl.store(out + row * V + v, (found / found_size).to(out.dtype.element_ty), mask=v < V)

    if head == 0:
        tl.store(new_seen + text, tl.load(seen + text) + here)
        if W > 0:
            tl.store(new_present + text * W + w, near_there, mask=w < W - 1)
            tl.store(new_present + text * W + W - 1, here != 0)
