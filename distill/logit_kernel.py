"""KL of two predictions of a token and its gradient as one Triton kernel: logits are read twice, the gradient written.

Another takes a gradient times what comes back to it.

    KL = Σ_v p_v (log p_v − log s_v),    T ∂KL/∂u_v = s_v − p_v,    p = softmax(t/T), s = softmax(u/T)

of teacher's logits t and student's u. A program has a row: first what its softmaxes are divided by, then, from its end
to its beginning since the end is still in the cache, the rest. Arithmetic is float32, and logarithms are to the base 2,
whose powers take one instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .flexformer.linear_layout import in_pieces
from .flexformer.tiles import LOG2_E, narrow

#: Logits that a program has at a time, and its warps.
AT_ONCE, WARPS = 4096, 8
#: Numbers that a program scales.
SCALED = 8192
#: Stands for the logit of a token that there is not: its power is 0, whatever is taken from it. Those below LEAST are
#: such: their last digit is more than a power can be.
NO_TOKEN, LEAST = tl.constexpr(-1e30), tl.constexpr(-1e9)


@triton.jit
def logits(x, v, V: tl.constexpr, scale):
    """Of tokens v, scaled."""
    found = tl.load(x + v, mask=v < V, other=float("-inf")).to(tl.float32)
    # As models write the least of float32 for a token that there must not be: scaled it would be infinite.
    found = tl.where(found < NO_TOKEN, NO_TOKEN, found) * scale
    # Chosen after it is scaled, or a GPU does that in one instruction with what is taken from it: of -1e30 and itself
    # 1e22 was left. NaN stays.
    return tl.where(found < LEAST, NO_TOKEN, found)


@triton.jit
def taken_in(top, size, x):
    """The largest so far and Σ 2^{x − top}, of each lane, with one more."""
    higher = tl.maximum(top, x)
    return higher, size * tl.exp2(top - higher) + tl.exp2(x - higher)


@triton.jit
def level(top, size):
    """log Σ 2^x of all lanes."""
    highest = tl.max(top, 0)
    return highest + tl.log2(tl.sum(size * tl.exp2(top - highest), 0))


@triton.jit
def logit_kl_kernel(
    teacher, student, kls, gradient, teacher_row, student_row, gradient_row, scale, factor,
    V: tl.constexpr, BLOCK: tl.constexpr, TRACKED: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): KL of each; and, where TRACKED, (s − p)·factor (rows, V). scale: log₂ e / T.

    teacher_row, student_row, gradient_row: from one row to the next.
    """
    row = tl.program_id(0).to(tl.int64)
    teacher, student, gradient = teacher + row * teacher_row, student + row * student_row, gradient + row * gradient_row
    lanes = tl.arange(0, BLOCK)
    nothing = tl.zeros((BLOCK,), tl.float32)
    top_t, size_t, top_u, size_u = nothing + NO_TOKEN, nothing, nothing + NO_TOKEN, nothing
    for start in range(0, V, BLOCK):
        top_t, size_t = taken_in(top_t, size_t, logits(teacher, start + lanes, V, scale))
        top_u, size_u = taken_in(top_u, size_u, logits(student, start + lanes, V, scale))
    of_t, of_u, kl = level(top_t, size_t), level(top_u, size_u), nothing
    for start in range(0, V, BLOCK):
        v = (V - 1) // BLOCK * BLOCK - start + lanes
        log_p, log_s = logits(teacher, v, V, scale) - of_t, logits(student, v, V, scale) - of_u
        p = tl.exp2(log_p)
        kl += p * (log_p - log_s)
        if TRACKED:
            by_u = narrow((tl.exp2(log_s) - p) * factor, gradient.dtype.element_ty)
            tl.store(gradient + v, by_u, mask=v < V)
    tl.store(kls + row, tl.sum(kl, 0) / LOG2_E)


@triton.jit
def scale_kernel(x, factor, N, BLOCK: tl.constexpr):
    """Grid (blocks,): x (N,) becomes x times the number `factor`; where that is 1, as it mostly is, nothing is read."""
    times = tl.load(factor).to(tl.float32)
    if times != 1:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        scaled = tl.load(x + at, mask=at < N).to(tl.float32) * times
        tl.store(x + at, narrow(scaled, x.dtype.element_ty), mask=at < N)


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """x times a number that only the device knows, in its place: x lies in one piece."""
    with torch.cuda.device_of(x):
        scale_kernel[(triton.cdiv(x.numel(), SCALED),)](x, factor, x.numel(), SCALED, num_warps=WARPS)
    return x


def row_kls(teacher: Tensor, student: Tensor, gradient: Tensor | None, temperature: float) -> Tensor:
    """KL at temperature T of rows of logits (M, V): (M,), float32. gradient: room for T (s − p) / M, rows in pieces."""
    teacher, student = in_pieces(teacher), in_pieces(student)
    count, width = student.shape
    kls = torch.empty(count, device=student.device, dtype=torch.float32)
    # In the place of what is not written stands something.
    room = kls if gradient is None else gradient
    with torch.cuda.device_of(student):
        logit_kl_kernel[(count,)](
            teacher, student, kls, room, teacher.stride(0), student.stride(0), room.stride(0),
            LOG2_E.value / temperature, temperature / count, width,
            min(AT_ONCE, triton.next_power_of_2(width)), gradient is not None, num_warps=WARPS,
        )  # fmt: skip
    return kls
