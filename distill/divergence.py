"""How far one prediction of tokens is from another."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .flexformer.attempt import KERNELS, PYTORCH, attempt, possible, tell

#: Logits that are held against each other at a time: on a processor they stay in its cache, a GPU is busy with them.
#: Those of whole texts are the largest tensors of a step, of which one alone is then in memory beside them.
AT_A_TIME = {"cpu": 2**17, "cuda": 2**24}
#: The logarithm of no chance at all: from −∞ nothing can be taken, nor 0 times it. As the kernel has it.
NO_CHANCE = -1e30
#: What a kernel is for.
WHAT = "the loss of logits"


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL = Σ_v p (log p − log s) in nats, p = softmax(teacher/T), s = softmax(student/T): logits (…, V) → (…).

    float32 at least, whatever the logits are.
    """
    target, found = (log_softmax(logits, temperature) for logits in (teacher, student))
    return (target.exp() * (target - found)).sum(-1)


def logit_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher‖student) at temperature T: logits (…, V) → mean over all predictions. Back to the student alone."""
    found: Tensor = LogitKl.apply(teacher, student, temperature, kls)
    return found


#: KL at a temperature of rows of logits (M, V): (M,); and, if there is room (M, V), T (s − p) / M into it.
Kls = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


class LogitKl(torch.autograd.Function):
    """`logit_kl`, whose gradient, T (s − p) of every prediction over their number, is made by `kls` on the way."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, temperature: float, kls: Kls) -> Tensor:
        # In float16 most of it would be nothing before it is scaled.
        held = torch.float32 if student.dtype == torch.float16 else student.dtype
        ctx.gradient = student.new_empty(student.shape, dtype=held) if ctx.needs_input_grad[1] else None
        ctx.dtype = student.dtype
        room = None if ctx.gradient is None else ctx.gradient.flatten(0, -2)
        return temperature**2 * kls(teacher.flatten(0, -2), student.flatten(0, -2), room, temperature).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        found, ctx.gradient = ctx.gradient, None
        if found is None:
            raise RuntimeError("the gradient of this gap is gone: it was taken, and is not kept by retain_graph")
        return None, scaled(found, gradient).to(ctx.dtype), None, None


def kls(teacher: Tensor, student: Tensor, gradient: Tensor | None, temperature: float) -> Tensor:
    """As `kls_in_parts`, by a kernel where there is one."""
    found = None
    if has_kernel(teacher, student):
        found = attempt(WHAT, lambda: kls_by_kernel(teacher, student, gradient, temperature))
    tell(WHAT, PYTORCH if found is None else KERNELS)
    return kls_in_parts(teacher, student, gradient, temperature) if found is None else found


def has_kernel(teacher: Tensor, student: Tensor) -> bool:
    """Whether one can tell rows of logits (M, V) apart: on a GPU, but for float64. What does not match is PyTorch's."""
    return (
        student.is_cuda
        and (teacher.shape, teacher.device) == (student.shape, student.device)
        and torch.float64 not in (teacher.dtype, student.dtype)
        and student.numel() > 0
        and possible(WHAT)
        and find_spec("triton") is not None
    )


def kls_by_kernel(teacher: Tensor, student: Tensor, gradient: Tensor | None, temperature: float) -> Tensor:
    """As `kls_in_parts`."""
    from .logit_kernel import row_kls

    return row_kls(teacher, student, gradient, temperature)


def scaled(found: Tensor, factor: Tensor) -> Tensor:
    """found (…) times a number, in its place: by a kernel where there is one, since PyTorch's is slow where the number
    is of another dtype, and reads and writes all even where it is 1."""
    made = attempt(WHAT, lambda: scaled_by_kernel(found, factor)) if has_kernel(found, found) else None
    return found.mul_(factor) if made is None else made


def scaled_by_kernel(found: Tensor, factor: Tensor) -> Tensor:
    """As `scaled`."""
    from .logit_kernel import scale

    return scale(found, factor)


def kls_in_parts(teacher: Tensor, student: Tensor, gradient: Tensor | None, temperature: float) -> Tensor:
    """KL at temperature T of rows of logits (M, V): (M,). gradient: room (M, V) for T (s − p) / M."""
    together = max(1, AT_A_TIME["cpu" if student.device.type == "cpu" else "cuda"] // student.shape[-1])
    kls, parts = [], [teacher.split(together), student.split(together)]
    left = iter([] if gradient is None else gradient.split(together))
    for target, found in zip(*parts, strict=True):
        log_target, log_found = log_softmax(target, temperature), log_softmax(found, temperature)
        chances = log_target.exp()
        kls.append((chances * log_target.sub_(log_found)).sum(-1))
        if gradient is not None:
            next(left).copy_(log_found.exp_().sub_(chances).mul_(temperature / max(1, len(student))))
    return torch.cat(kls)


def top_k_kl(log_likeliest: Tensor, tokens: Tensor, student: Tensor) -> Tensor:
    """KL of the k likeliest tokens and of all others as one: Σ_k p (log p − log s) + r (log r − log s_r), the mean.

    r = 1 − Σ_k p. log_likeliest, tokens (…, k): log p and which they are; student: logits (…, V). Never more than the
    whole KL, and all of it where k = V.
    """
    wide = student.to(torch.promote_types(student.dtype, torch.float32))
    every = wide.logsumexp(-1)
    chances = log_likeliest.exp()
    likeliest = (chances * (log_likeliest - wide.gather(-1, tokens) + every[..., None])).sum(-1)
    rest = (1 - chances.sum(-1)).clamp(min=0)
    if tokens.shape[-1] == student.shape[-1]:
        return likeliest.mean()
    others = wide.scatter(-1, tokens, -torch.inf).logsumexp(-1) - every
    return (likeliest + torch.special.xlogy(rest, rest) - rest * others).mean()


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1:
        logits = logits.to(wide) / temperature
    return logits.log_softmax(-1, dtype=wide).clamp(min=NO_CHANCE)
