"""Kernels that may not be built: Triton needs a C compiler, and a GPU that it knows. And what is done by which way."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")
#: Bytes that the warps of an H100 share, for which kernels' tiles are made, backwards most of all.
SHARED = 232448
#: For what there are none, as has turned out.
_given_up: set[str] = set()
#: By what is done, the ways that were taken since somebody cleared them, in their order.
taken: dict[str, list[str]] = {}
LINEAR, KERNELS, PYTORCH = "linear attention", "kernels", "PyTorch"


def roomy(device: torch.device) -> bool:
    """Whether kernels that go backwards fit: that they do not would be seen only there, after others went forwards."""
    # What is built for AMD's GPUs does not say.
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0) >= SHARED


def exported() -> bool:
    """Whether what is computed is written down, to be run where there may be no kernels.

    But for what `torch.export` writes with strict=True: PyTorch 2.11 says `is_exporting` of what it compiles, too.
    """
    compiler = torch.compiler
    return torch.jit.is_tracing() or (compiler.is_compiling() and not compiler.is_dynamo_compiling())


def possible(what: str) -> bool:
    return what not in _given_up


def give_up(what: str) -> None:
    _given_up.add(what)


def tell(what: str, way: str) -> None:
    """Adds to `taken`."""
    ways = taken.setdefault(what, [])
    if way not in ways:
        ways.append(way)


@torch.compiler.assume_constant_result
def noted(what: str, way: str) -> None:
    """`tell`, which the compiler does not look into: then once, as it compiles."""
    tell(what, way)


def watched() -> bool:
    """Whether a CUDA graph is made, or whatever waits for the GPU is an error: then it may be no fault of kernels."""
    cuda = torch.cuda.is_available()
    return cuda and (torch.cuda.is_current_stream_capturing() or torch.cuda.get_sync_debug_mode() == 2)


class NoKernels(RuntimeError):
    """Kernels that were counted on cannot be used."""


def required(what: str, work: Callable[[], Made]) -> Made:
    """What `work` makes; NoKernels where its kernels cannot be built, and then `what` is left to PyTorch from then on:
    in what is compiled, which nothing else can be put into, when it is compiled again."""
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:
        if watched():
            raise
        give_up(what)
        raise NoKernels(f"kernels of {what} cannot be used here: {problem}") from problem


def attempt(what: str, work: Callable[[], Made]) -> Made | None:
    """What `work` makes; None, and a warning, where its kernels cannot be built."""
    try:
        return required(what, work)
    except NoKernels as problem:
        reason = problem.__cause__
        warnings.warn(f"{what} goes through PyTorch, since its kernels cannot be used here: {reason}", stacklevel=3)
        return None
