"""What kernels make of rows of queries and keys: features, key weights and gates, see `linear_kernels`."""

try:
    import triton
    import triton.language as tl
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

from .tiles import LOG2_E, log2, product, rows

#: Stands for the maximum of no keys at all: `engine.NO_KEYS`.
NO_KEYS: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def numbers(x, row, n, N, other: tl.constexpr):
    """Of tokens n of a row of x (·, N)."""
    return tl.load(x + row * N + n, mask=n < N, other=other)


@triton.jit
def basis(frequency, bias, head, f, d, F: tl.constexpr, D: tl.constexpr, GIVEN: tl.constexpr):
    """Ω (F, D) of a head, and b (F,) to the base 2, −∞ for the features that there are not."""
    omega, level = tl.zeros((f.shape[0], d.shape[0]), tl.bfloat16), tl.zeros((f.shape[0],), tl.float32)
    if not GIVEN:
        omega = rows(frequency + head * F * D, f, F, d, D)
        level = tl.load(bias + head * F + f, mask=f < F, other=float("-inf")).to(tl.float32) * LOG2_E
    return omega, level


@triton.jit
def logits(x, omega, level, scale, MODE: tl.constexpr):
    """Ω x + b of rows x, to the base 2: (C, F)."""
    return product(x, tl.trans(omega), MODE) * (scale * LOG2_E) + level[None, :]


@triton.jit
def features(x, omega, level, scale, MODE: tl.constexpr):
    """softmax(Ω x + b) of rows x: (C, F); and the logarithm of what they are divided by, to the base 2: (C,)."""
    found = logits(x, omega, level, scale, MODE)
    most = tl.max(found, 1)
    weights = tl.exp2(found - most[:, None])
    total = tl.sum(weights, 1)
    return weights * (1.0 / total)[:, None], most + log2(total)


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
    x, omega, level, given, norms, place, n, count, skip, N, f, scale, F: tl.constexpr, GIVEN: tl.constexpr,
    MODE: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """φ of tokens n, x, see `basis`, or as it is GIVEN, the `count` at `place` from token `skip` on: (C, F).

    norms (·, N) become what `features` finds beside them, where they are made FIRST; an exponential is enough then.
    """
    if GIVEN:
        phi = rows(given + place * count * F, n - skip, count, f, F).to(tl.float32)
    elif FIRST:
        phi, norm = features(x, omega, level, scale, MODE)
        tl.store(norms + place * N + n, norm, mask=n < N)
    else:
        phi = tl.exp2(logits(x, omega, level, scale, MODE) - numbers(norms, place, n, N, float("inf"))[:, None])
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
def gates(x, bias, linear, quadratic, row, asker, n, N, d, scale, D: tl.constexpr, GIVEN: tl.constexpr):
    """g of queries n, x: (C,)."""
    if GIVEN:
        gate = numbers(bias, row, n, N, 0.0)
    else:
        gate = polynomial(x, linear + asker * D, quadratic + asker * D, d, scale, D, 2)
        gate += tl.load(bias + asker).to(tl.float32)
    return gate
