"""The sums of parts of a text, one after another: what `linear_kernels` have of all that comes before a part."""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_rows import NO_KEYS
from .tiles import narrow, power


@triton.jit
def joined(found, top, own, reach, taken):
    """What is `found`, at level `top`, with the parts that are `taken`, each its `own` at its `reach`.

    Σ e^{level − t} of all, and t, the highest level. Of others not even what is infinite comes in.
    """
    own, reach = tl.where(taken[:, None], own, 0.0), tl.where(taken, reach, float("-inf"))
    level = tl.maximum(top, tl.max(reach, 0))
    return found * power(top - level) + tl.sum(own * power(reach - level)[:, None], 0), level


@triton.jit
def scan_kernel(
    sums, scanned, tops, peaks, before, before_top, after, last,
    PARTS, F: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, GOES_ON: tl.constexpr, BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of F·V + F numbers, B·K): of sums (B·K, PARTS, ·) of parts those of all before each (scanned).

    With e^{w_j − t}, t the largest w_j before the part, which becomes its column of tops (B·K, PARTS + 1). Where a text
    GOES_ON, what came before is in `before` (B, K, F, V + 1); all there is at its end goes to `after`, and the largest
    w_j to `last`. REVERSE: of all parts after each, with e^{m − s_i}, see `linear_gradients`; tops are read, and −m is
    the level, which grows from the end on. Parts are loaded AT_ONCE, since one after another each would be waited for.
    """
    place = tl.program_id(1).to(tl.int64)
    X: tl.constexpr = F * V + F
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    remembered = place * X + tl.where(x < F * V, x + x // V, (x - F * V) * (V + 1) + V)
    tops += place * (PARTS + 1)
    sums, scanned = sums + place * PARTS * X, scanned + place * PARTS * X
    found = tl.zeros((BLOCK,), tl.float32)
    top = tl.max(found, 0) + NO_KEYS
    if GOES_ON:
        found, top = tl.load(before + remembered, mask=x < X, other=0.0), tl.load(before_top + place)
    if REVERSE:
        top = -tl.load(tops + PARTS)
    each = tl.arange(0, AT_ONCE)
    for first in range(0, PARTS, AT_ONCE):
        there = first + each < PARTS
        part = PARTS - 1 - first - each if REVERSE else first + each
        own = tl.load(sums + part[:, None] * X + x[None, :], mask=there[:, None] & (x < X)[None, :], other=0.0)
        if REVERSE:
            reach = -tl.load(tops + part, mask=there, other=float("inf"))
        else:
            reach = tl.load(peaks + place * PARTS + part, mask=there, other=float("-inf"))
        for c in tl.static_range(AT_ONCE):
            if first + c < PARTS:
                at = PARTS - 1 - first - c if REVERSE else first + c
                so_far, level = joined(found, top, own, reach, each < c)
                tl.store(scanned + at * X + x, narrow(so_far, scanned.dtype.element_ty), mask=x < X)
                if not REVERSE and tl.program_id(0) == 0:
                    tl.store(tops + at, level)
        found, top = joined(found, top, own, reach, there)
    if not REVERSE:
        tl.store(after + remembered, found, mask=x < X)
        if tl.program_id(0) == 0:
            tl.store(tops + PARTS, top)
            tl.store(last + place, top)
