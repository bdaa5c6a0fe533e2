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
def taken_in_softmax(most, total, x, omega, level, scale, MODE: tl.constexpr):
    """2^{Ω x + b − t} of a tile of features; what those before it shrink by; t, the largest logit so far; Σ 2^{… − t}.

    `most` and `total` are t and the sum before it.
    """
    found = logits(x, omega, level, scale, MODE)
    higher = tl.maximum(most, tl.max(found, 1))
    weights, shrunk = tl.exp2(found - higher[:, None]), tl.exp2(most - higher)
    return weights, shrunk, higher, total * shrunk + tl.sum(weights, 1)


@triton.jit
def features(x, omega, level, scale, MODE: tl.constexpr):
    """softmax(Ω x + b) of rows x: (C, F); and the logarithm of what they are divided by, to the base 2: (C,)."""
    nothing = tl.zeros((x.shape[0],), tl.float32)
    weights, _, most, total = taken_in_softmax(nothing + NO_KEYS, nothing, x, omega, level, scale, MODE)
    return weights * (1.0 / total)[:, None], most + log2(total)


@triton.jit
def features_in_tile(
    x, omega, level, frequency, bias, head, f, d, scale, F: tl.constexpr, D: tl.constexpr, MODE: tl.constexpr
):
    """As `features`, of which only f are made, whose Ω and b are omega and level."""
    if f.shape[0] >= F:
        phi, norm = features(x, omega, level, scale, MODE)
    else:
        most, total = tl.full((x.shape[0],), NO_KEYS, tl.float32), tl.zeros((x.shape[0],), tl.float32)
        for first in range(0, F, f.shape[0]):
            each, each_level = basis(frequency, bias, head, first + tl.arange(0, f.shape[0]), d, F, D, False)
            _, _, most, total = taken_in_softmax(most, total, x, each, each_level, scale, MODE)
        norm = most + log2(total)
        phi = tl.exp2(logits(x, omega, level, scale, MODE) - norm[:, None])
    return phi, norm


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
    MODE: tl.constexpr,
):  # fmt: skip
    """φ of tokens n, x, by their norms (·, N), or as it is GIVEN, the `count` at `place` from `skip` on."""
    if GIVEN:
        phi = rows(given + place * count * F, n - skip, count, f, F).to(tl.float32)
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
