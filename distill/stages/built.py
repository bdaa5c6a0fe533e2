"""Kernels that are built before they are launched, side by side.

Built when it is first launched, each waits for the one before: for a student whose layers have different numbers of
features, a minute and more.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .. import ranks
from ..cores import cpu_cores

#: Whose kernels these are: launches of others may decide what comes next.
PACKAGE = __name__.split(".")[0]
#: Bytes that a pointer is a multiple of where a kernel is built for wide loads.
ALIGNED = 16


@dataclass(frozen=True)
class Like:
    """In the place of a tensor, all of it that a kernel is built for: its dtype, and the bytes that it begins beyond a
    multiple of ALIGNED."""

    dtype: torch.dtype
    beyond: int

    def data_ptr(self) -> int:
        return self.beyond


@contextmanager
def built() -> Iterator[list[BaseException]]:
    """Inside, no kernel of this package is launched, so that what it would write is whatever was there; after it, all
    that would have been are built. What came of those that could not be is in the list."""
    failed = list[BaseException]()
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield failed
        return
    # By all that they are built for, since layers alike launch the same; and without tensors, which would be kept.
    wanted = dict[tuple[Any, str], tuple[Any, ...]]()
    run = JITFunction.run

    def noted(kernel: Any, *given: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        if kernel.__module__.partition(".")[0] != PACKAGE:
            return run(kernel, *given, grid=grid, warmup=warmup, **settings)
        told = described(given), settings
        wanted[kernel, repr(told)] = told
        return None

    def build(kernel: Any, given: tuple[Any, ...], settings: dict[str, Any]) -> None:
        with torch.cuda.device(device):
            kernel.warmup(*given, grid=(1,), **settings)

    with patch.object(JITFunction, "run", noted):
        yield failed
    if not wanted:
        return
    device = torch.cuda.current_device()
    for kernel, _ in wanted:
        # Made by the first to ask, which two threads could be.
        kernel.device_caches[device]
    with ThreadPoolExecutor(threads_of(min(ranks.size(), torch.cuda.device_count()))) as threads:
        begun = list[Future[None]]()
        try:
            begun += [threads.submit(build, kernel, *told) for (kernel, _), told in wanted.items()]
            failed += [problem for each in begun if (problem := each.exception())]
        except BaseException:
            # Or Ctrl-C would wait for all that is left.
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def threads_of(processes: int) -> int:
    """Of each of so many on a machine: its share of all cores, or those that it was bound to, as srun does."""
    return max(1, min(cpu_cores(), (os.cpu_count() or 1) // max(1, processes)))


def described(x: Any) -> Any:
    """An argument, or several, without what tensors hold."""
    if isinstance(x, Tensor):
        return Like(x.dtype, x.data_ptr() % ALIGNED)
    return tuple(map(described, x)) if isinstance(x, tuple) else x
