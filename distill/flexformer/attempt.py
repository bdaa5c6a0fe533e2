"""Kernels that may not be built: Triton needs a C compiler, and a GPU that it knows."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")
#: For what there are none, as has turned out.
_given_up: set[str] = set()


def possible(what: str) -> bool:
    return what not in _given_up


def attempt(what: str, work: Callable[[], Made]) -> Made | None:
    """What `work` makes; None where its kernels cannot be built, and then `what` is left to PyTorch from then on."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:
        _given_up.add(what)
        warnings.warn(f"{what} goes through PyTorch, since its kernels cannot be used here: {problem}", stacklevel=3)
        return None
