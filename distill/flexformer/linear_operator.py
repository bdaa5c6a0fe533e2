"""Linear attention by kernels as operators of PyTorch, which its compiler takes as they are, in a graph with the rest.

Where nothing is compiled `linear_function.Attention` does the same, and is called in a third of the time.
"""

from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from .attempt import KERNELS, LINEAR, required, tell
from .linear_function import Kept, backwards, forwards, parted
from .linear_layout import Sizes

#: Of this copy alone, of which a process may have several: one comes with every student, and is named after its folder.
SPACE = f"flexformer_{sha256(__name__.encode()).hexdigest()[:16]}"


def attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """As `Attention.apply`."""
    *given, present, before, sizes = rest
    kept = Kept(*forwards_operator(query, key, value, given, present, list(before or ()), *sizes))
    # No gradient goes through a state.
    return kept.out, kept.after.detach(), kept.last.detach()


@torch.library.custom_op(f"{SPACE}::linear_attention", mutates_args=())
def forwards_operator(
    query: Tensor, key: Tensor, value: Tensor, given: list[Tensor], present: Tensor | None, before: list[Tensor],
    width: int, degree: int, epsilon: float, scale: float, features_given: bool,
) -> list[Tensor]:  # fmt: skip
    """See `forwards`."""
    # The mixer tells once, as it is compiled.
    tell(LINEAR, KERNELS)
    sizes = Sizes(width, degree, epsilon, scale, features_given)
    return list(required(LINEAR, lambda: forwards(query, key, value, given, present, before, sizes)))


@forwards_operator.register_fake
def _(query, key, value, given, present, before, *sizes):  # type: ignore[no-untyped-def]
    return list(forwards(query, key, value, given, present, before, Sizes(*sizes), launched=False))


@torch.library.custom_op(f"{SPACE}::linear_attention_backward", mutates_args=())
def backwards_operator(
    asked: Tensor, query: Tensor, key: Tensor, value: Tensor, given: list[Tensor], present: Tensor | None,
    kept: list[Tensor], width: int, degree: int, epsilon: float, scale: float, features_given: bool, goes_on: bool,
) -> list[Tensor]:  # fmt: skip
    """See `backwards`."""
    sizes = Sizes(width, degree, epsilon, scale, features_given)
    *by_heads, by = required(
        LINEAR, lambda: backwards(asked, query, key, value, given, present, Kept(*kept), sizes, goes_on)
    )
    return [*by_heads, *by]


@backwards_operator.register_fake
def _(asked, query, key, value, given, present, kept, *sizes):  # type: ignore[no-untyped-def]
    *numbers, goes_on = sizes
    room = backwards(asked, query, key, value, given, present, Kept(*kept), Sizes(*numbers), goes_on, launched=False)
    *by_heads, by = room
    return [*by_heads, *by]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    query, key, value, given, present, before, *sizes = inputs
    ctx.save_for_backward(query, key, value, *given, present, *output)
    ctx.sizes, ctx.started = sizes, len(before)


def _back(ctx: Any, by: list[Tensor]) -> tuple[Any, ...]:
    query, key, value, *saved = ctx.saved_tensors
    (*given, present), kept = saved[: -len(Kept._fields)], saved[-len(Kept._fields) :]
    heads = backwards_operator(by[0], query, key, value, given, present, kept, *ctx.sizes, bool(ctx.started))
    by_query, by_key, by_value, *found = heads
    nothing = [None] * ctx.started
    return by_query, by_key, by_value, parted(found, given), None, nothing, *[None] * len(ctx.sizes)


forwards_operator.register_autograd(_back, setup_context=_keep)
