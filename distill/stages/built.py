"""Kernels that are built before they are launched, side by side.

Built when it is first launched, each waits for the one before: for a student whose layers have five different numbers
of features, minutes.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ..cores import cpu_cores


@contextmanager
def built() -> Iterator[None]:
    """Inside, no kernel of Triton's is launched, so that what it would write is whatever was there; after it, all that
    would have been are built. One that cannot be says so when it is launched."""
    try:
        from triton.runtime.jit import JITFunction, MockTensor
    except ImportError:
        yield
        return
    # As keys, since layers alike launch the same; and without tensors, which would be kept.
    wanted = dict[tuple[Any, ...], None]()

    def noted(kernel: Any, *given: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        wanted[kernel, described(given), tuple(settings.items())] = None

    with patch.object(JITFunction, "run", noted):
        yield

    def standing(x: Any) -> Any:
        return tuple(map(standing, x)) if isinstance(x, tuple) else MockTensor.wrap_dtype(x)

    def build(device: int, kernel: Any, given: tuple[Any, ...], settings: tuple[tuple[str, Any], ...]) -> None:
        with torch.cuda.device(device):
            kernel.warmup(*standing(given), grid=(1,), **dict(settings))

    with ThreadPoolExecutor(cpu_cores()) as threads:
        for each in wanted:
            threads.submit(build, torch.cuda.current_device(), *each)


def described(x: Any) -> Any:
    """An argument by all that a kernel is built for: of a tensor the dtype."""
    if isinstance(x, Tensor):
        return x.dtype
    return tuple(map(described, x)) if isinstance(x, tuple) else x
