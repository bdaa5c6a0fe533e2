"""What the kernels of training have in common: tiles in, and products of tiles."""

import math
import os

from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton import cdiv as cdiv
except ImportError:  # Caught, or transformers would ask everybody for it who loads a checkpoint.
    raise

#: Triton's interpreter multiplies bfloat16 as if its bits were whole numbers, and does not round to it, but cuts off.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
#: A tile is no narrower: of narrower ones in shared memory the assembler of CUDA 12.8, which Triton 3.6 has with it,
#: makes some addresses wrong, that of 12.9 none.
LEAST: tl.constexpr = tl.constexpr(64)
LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))


@triton.jit
def power(x):
    """e^x in two instructions, 0 where it is below 2^−126; `tl.exp` takes five."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def log2(x):
    """Of no subnormal numbers, in one instruction: `tl.log2` is a polynomial of some twenty."""
    if INTERPRETED:
        found = tl.log2(x)
    else:
        found = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return found


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x rounded to `dtype`."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def held_as(x, MODE: tl.constexpr):
    """As products of `MODE` take it: half as wide where they are of bfloat16."""
    if MODE == "bf16":
        x = narrow(x, tl.bfloat16)
    return x


@triton.jit
def product(a, b, MODE: tl.constexpr):
    """Of bfloat16 ("bf16"), or of float32 as tensor cores have it ("tf32"), or as exact as it is ("tf32x3")."""
    # No return in between: what comes after one is compiled all the same.
    if MODE == "bf16":
        a, b = held_as(a, MODE), held_as(b, MODE)
        found = tl.dot(a.to(tl.float32), b.to(tl.float32)) if INTERPRETED else tl.dot(a, b)
    else:
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=MODE)
    return found


@triton.jit
def summed(x, weight, MODE: tl.constexpr):
    """Σ_n weight_n x_n of rows x: (width of x,). By a product, since sums over rows go from warp to warp."""
    column = tl.arange(0, LEAST)[None, :]
    rest = weight[:, None] - held_as(weight[:, None], MODE).to(tl.float32)
    weights = tl.where(column == 0, weight[:, None], tl.where(column == 1, rest, 0.0))
    return tl.sum(product(tl.trans(x), weights, MODE), 1)


@triton.jit
def within(n, count, d, width: tl.constexpr):
    """Which of rows n and columns d there are; what is known beforehand is not asked.

    d begins at a multiple of as many as it has.
    """
    inside = ((n >= 0) & (n < count))[:, None]
    # Not `width % d.shape[0]`, which the interpreter cannot take.
    if (d.shape[0] + width) % d.shape[0] != 0:
        inside = inside & (d < width)[None, :]
    return inside


@triton.jit
def rows(pointer, n, count, d, width: tl.constexpr):
    """Rows n of a matrix of `width` columns, and of these d: 0 beyond its ends."""
    return tl.load(pointer + n[:, None] * width + d[None, :], mask=within(n, count, d, width), other=0.0)


@triton.jit
def spots(x, batch, head, n, d):
    """Where tokens n of a head are, and of these d: x is a pointer and the strides of batch, head and token."""
    return x[0] + batch * x[1] + head * x[2] + n.to(tl.int64)[:, None] * x[3] + d[None, :]


@triton.jit
def tokens(x, batch, head, n, count, d, width: tl.constexpr):
    """Tokens n of a head of x, see `spots`, `width` numbers each, and of these d: 0 beyond its ends."""
    return tl.load(spots(x, batch, head, n, d), mask=within(n, count, d, width), other=0.0)


def placed(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x (B, H, N, D), of which each token lies in one piece, as `spots` takes it."""
    return x, x.stride(0), x.stride(1), x.stride(2)


def block(size: int) -> int:
    """The size of a tile that holds so many; products take no fewer than 16."""
    return max(16, triton.next_power_of_2(size))
