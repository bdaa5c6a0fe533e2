"""The sums of parts of a text, one after another: what `linear_kernels` have of all that comes before a part."""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .linear_rows import NO_KEYS
from .tiles import narrow, power


@triton.jit
def scan_kernel(
    sums, scanned, tops, peaks, before, before_top, after, last,
    PARTS, F: tl.constexpr, V: tl.constexpr, REVERSE: tl.constexpr, GOES_ON: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of F·V + F numbers, B·K): of sums (B·K, PARTS, ·) of parts those of all before each (scanned).

    With e^{w_j − t}, t the largest w_j before the part, which becomes its column of tops (B·K, PARTS + 1). Where a text
    GOES_ON, what came before is in `before` (B, K, F, V + 1); all there is at its end goes to `after`, and the largest
    w_j to `last`. REVERSE: of all parts after each, with e^{m − s_i}, see `linear_gradients`; tops are read.
    """
    place = tl.program_id(1).to(tl.int64)
    X: tl.constexpr = F * V + F
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    remembered = place * X + tl.where(x < F * V, x + x // V, (x - F * V) * (V + 1) + V)
    tops += place * (PARTS + 1)
    found = tl.zeros((BLOCK,), tl.float32)
    top = tl.max(found, 0) + NO_KEYS
    if GOES_ON:
        found, top = tl.load(before + remembered, mask=x < X, other=0.0), tl.load(before_top + place)
    if REVERSE:
        top = tl.load(tops + PARTS)
    # What is loaded depends on nothing that is found, and need not be waited for.
    for c in tl.range(0, PARTS, loop_unroll_factor=4):
        part = PARTS - 1 - c if REVERSE else c
        spot = (place * PARTS + part) * X + x
        own = tl.load(sums + spot, mask=x < X, other=0.0)
        tl.store(scanned + spot, narrow(found, scanned.dtype.element_ty), mask=x < X)
        if REVERSE:
            lower = tl.load(tops + part)
            found = found * power(lower - top) + own
            top = lower
        else:
            if tl.program_id(0) == 0:
                tl.store(tops + part, top)
            peak = tl.load(peaks + place * PARTS + part)
            higher = tl.maximum(top, peak)
            found = found * power(top - higher) + own * power(peak - higher)
            top = higher
    if not REVERSE:
        tl.store(after + remembered, found, mask=x < X)
        if tl.program_id(0) == 0:
            tl.store(tops + PARTS, top)
            tl.store(last + place, top)
