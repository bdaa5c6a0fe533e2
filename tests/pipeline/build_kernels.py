"""What is launched inside `built` is built for a GPU, which takes none, and found when it is launched again."""

import threading
from concurrent.futures import Future
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from distill.flexformer.feature_map import HeadShape
from distill.flexformer.linear_function import forwards
from distill.flexformer.linear_layout import Sizes
from distill.flexformer.mixer import Mixer
from distill.flexformer.parameters import parameters
from distill.mixer import named_options
from distill.stages.built import built


class Driver:
    """Of an H100 that is not there: a launch would fail."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Device:
    """Stands for `torch.cuda.device`."""

    def __init__(self, index: int):
        assert index == 0

    def __enter__(self) -> None: ...

    def __exit__(self, *problem: object) -> None: ...


@triton.jit
def doubled(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at))


@triton.jit
def broken(x, SIZE: tl.constexpr):
    tl.store(x, tl.arange(0, SIZE + 1))


@triton.jit
def foreign(x):
    tl.store(x, 1)


for ours in (doubled, broken):
    ours.__module__ = "distill.example"


def work() -> None:
    for size in (32, 64, 32):
        doubled[(1,)](torch.ones(64), SIZE=size)
    doubled[(1,)](torch.ones(64, dtype=torch.bfloat16), SIZE=32)
    # Which begins where no wide load does.
    doubled[(1,)](torch.ones(65)[1:], SIZE=64)
    mixer = Mixer(HeadShape(2, 2, 16), named_options("exponential", 64) | {"features": 16})
    heads = (torch.randn(1, 2, 64, 16, dtype=torch.bfloat16) for _ in range(3))
    degree = len(mixer.key_weight.coefficients)
    forwards(*heads, parameters(mixer), None, (), Sizes(0, degree, 1e-6, 0.5, False))


def main() -> None:
    names, make, run = list[str](), JITFunction._do_compile, JITFunction.run
    both, begun = threading.Barrier(2, timeout=60), count()

    def made(kernel: Any, *given: Any) -> Any:
        names.append(kernel.__name__)
        if next(begun) < 2:
            # One after the other this would wait in vain.
            both.wait()
        return make(kernel, *given)

    def looked_up(kernel: Any, *given: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        run(kernel, *given, grid=grid, warmup=True, **settings)

    driver.set_active(Driver())
    there = patch.multiple(torch.cuda, device=Device, current_device=lambda: 0)
    cores = patch("distill.stages.built.threads_of", lambda processes: 2)
    with there, cores, patch.object(JITFunction, "_do_compile", made):
        x = torch.ones(64)
        with built() as failed:
            work()
            broken[(1,)](x, SIZE=2)
            doubled[(1,)](x, SIZE=64)
        assert x.unique() == 1 and JITFunction.run is run
        print(*sorted(names))
        (told,) = map(str, failed)
        assert "power of 2" in told, told
        names.clear()
        with patch.object(JITFunction, "run", looked_up):
            work()
        assert not names, names
        try:
            with built():
                doubled[(1,)](x, SIZE=16)
                raise RuntimeError("elsewhere")
        except RuntimeError:
            assert not names and JITFunction.run is run
        launched = ""
        try:
            with built():
                foreign[(1,)](x)
        except AttributeError as problem:
            launched = str(problem)
        assert "launcher" in launched and names == ["foreign"]
        names.clear()
        stopped = False
        try:
            with patch.object(Future, "exception", side_effect=KeyboardInterrupt), built():
                for power in range(7, 17):
                    doubled[(1,)](x, SIZE=2**power)
        except KeyboardInterrupt:
            stopped = True
        # None is begun after Ctrl-C.
        assert stopped and len(names) < 10, names
    print("all")


if __name__ == "__main__":
    main()
