"""What the kernels of training have in common: tiles in, and products of tiles."""

import os

import triton
import triton.language as tl

#: Triton's interpreter multiplies bfloat16 as if its bits were whole numbers: there they are rounded, and then widened.
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(a, b, MODE: tl.constexpr):
    """Of bfloat16 ("bf16"), or of float32 as tensor cores have it ("tf32"), or as exact as it is ("tf32x3")."""
    # No return in between: what comes after one is compiled all the same.
    if MODE == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        found = tl.dot(a.to(tl.float32), b.to(tl.float32)) if INTERPRETED else tl.dot(a, b)
    else:
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=MODE)
    return found


@triton.jit
def rows(pointer, n, count, d, width):
    """Rows n of a matrix of `width` columns, and of these d: 0 beyond its ends."""
    inside = (n < count)[:, None] & (d < width)[None, :]
    return tl.load(pointer + n[:, None] * width + d[None, :], mask=inside, other=0.0)


def block(size: int) -> int:
    """The size of a tile that holds so many; products take no fewer than 16."""
    return max(16, triton.next_power_of_2(size))
