"""What goes into the attention of a model, read while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .flexformer.exact import is_causal

#: The teacher's attention: exactly SDPA, which also hands out what goes into it while someone captures.
CAPTURE = "distill_capture"


class Heads(NamedTuple):
    """What enters one attention layer: q (B, H, N, D), k and v (B, K, N, D), after position encoding.

    causal: whether a token sees only those before it. given: the further arguments that came with a value.
    padding (B, N): 0 at tokens that are none; None where all are.
    """

    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    causal: bool = True
    given: frozenset[str] = frozenset()
    padding: Tensor | None = None


class Enough(Exception):
    """Nothing that the model would compute from here on is wanted."""


@dataclass
class Captured:
    """heads: of every attention layer that ran, in order. windows: the tokens that those see which see not all.

    layers: how many are wanted; None: all.
    """

    layers: int | None = None
    heads: list[Heads] = field(default_factory=list)
    windows: set[int] = field(default_factory=set)


_captured: ContextVar[Captured | None] = ContextVar("captured", default=None)


@contextmanager
def capture(layers: int | None = None) -> Iterator[Captured]:
    """Collects what goes into every attention layer that runs inside the block, or into the first ones: the block is
    left at the last of these, before it attends."""
    found = Captured(layers)
    token = _captured.set(found)
    try:
        yield found
    except Enough as left:
        # Where it came from would keep all alive that is there, until Python looks for rings.
        left.__traceback__ = None
    finally:
        _captured.reset(token)


def _listening() -> Captured | None:
    """Whoever captures: nobody from what is compiled, where it could not be asked."""
    return None if torch.compiler.is_compiling() else _captured.get()


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    captured = _listening()
    if captured is not None:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        given = frozenset(name for name, value in kwargs.items() if value is not None)
        captured.heads.append(Heads(module, query, key, value, scaling, is_causal(module), given))
        captured.windows |= {kwargs["sliding_window"]} if "sliding_window" in given else set()
        if len(captured.heads) == captured.layers:
            raise Enough
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def _mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
    """SDPA's masks. Some families have their windows in these alone."""
    captured = _listening()
    if captured is not None and local_size is not None:
        captured.windows.add(local_size)
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, local_size=local_size, **kwargs)


AttentionInterface.register(CAPTURE, _attention)
AttentionMaskInterface.register(CAPTURE, _mask)
