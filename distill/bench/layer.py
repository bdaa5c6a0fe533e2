"""One attention layer, and what computes the same of it in several ways, forwards and backwards, side by side."""

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..capture import Heads
from ..flexformer.feature_map import HeadShape
from ..flexformer.mixer import Mixer
from ..measure.cost import peak_bytes
from ..measure.steps import Step
from ..measure.turns import in_turn, out_of_memory
from .faster import captured

#: Rounds that are timed, after so many to warm up.
TURNS = 5, 1


@dataclass(frozen=True)
class Layer:
    """What is timed: a layer whose mixer has these options; dtype is that of queries, keys and values.

    name: what a configuration calls the mixer.
    """

    shape: HeadShape
    options: dict[str, Any]
    device: torch.device
    dtype: torch.dtype = torch.float32
    name: str = "exponential"

    @property
    def words(self) -> str:
        heads, kv_heads, head_dim = self.shape
        return f"{heads} heads of {head_dim}" + (f", {kv_heads} of keys" if kv_heads != heads else "")

    def mixer(self) -> Mixer:
        torch.manual_seed(0)
        return Mixer(self.shape, self.options).to(self.device)

    @property
    def feature_dim(self) -> int:
        return Mixer(self.shape, self.options).feature_dim

    def heads(self, length: int, batch: int = 1) -> Heads:
        heads, kv_heads, head_dim = self.shape
        counts = heads, kv_heads, kv_heads
        query, key, value = (torch.randn(batch, n, length, head_dim).to(self.device, self.dtype) for n in counts)
        return Heads(torch.nn.Identity(), query, key, value, head_dim**-0.5)


@dataclass(frozen=True)
class Measured:
    """seconds and peak_bytes of a way at a length, the latter None on a CPU."""

    way: str
    length: int
    seconds: float
    peak_bytes: int | None


def time_ways(
    device: torch.device,
    lengths: list[int],
    ways: Mapping[str, Callable[[int], Step | None]],
    told: str,
    times: int = 1,
    graphs: bool = False,
) -> list[Measured]:
    """ways: by name, what makes a step of a length, taken so many times to a round. One that makes none of a length, or
    has no memory for it, which is told, is left out from there on.

    graphs: whether steps are captured as CUDA graphs, so that how fast they are launched is not what is timed.
    """
    left, steps, peaks = dict(ways), dict[int, dict[str, Step]](), dict[tuple[int, str], int | None]()
    for length in sorted(lengths):
        fitting = {}
        # What is built for the first of a way can take a minute.
        for name, make in tqdm(left.items(), f"{told}, first of {length:,} tokens", unit="way", leave=False):
            try:
                step = make(length)
                if step is None:
                    continue
                step()
                # Before a step becomes a graph, whose memory is there all the time.
                peaks[length, name] = peak_bytes(step, device) if device.type == "cuda" else None
                fitting[name] = captured(step) if graphs else step
            except RuntimeError as problem:
                if not out_of_memory(problem):
                    raise
                absent = f"distill: no memory for {told}, {name}, of {length:,} tokens"
                tqdm.write(absent, file=sys.stderr)
        left = {name: left[name] for name in fitting}
        steps[length] = fitting
    seconds = in_turn(steps, times, device, told, *TURNS)
    return [
        Measured(way, length, statistics.median(taken), peaks[length, way])
        for length, by_way in seconds.items()
        for way, taken in by_way.items()
    ]


def error(found: Tensor, right: Tensor) -> float:
    """The largest, of the largest value there is; as it is where there are noughts alone."""
    return float((found.double() - right).abs().max() / (right.abs().max() or 1))


def multiplied_per_second(device: torch.device) -> float:
    """Floating-point operations of a product of large matrices a second, of bfloat16 on a GPU, here and now."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    taken = in_turn({size: {"product": lambda: left @ right}}, 10, device, "rate of products", *TURNS)
    return 2 * size**3 / statistics.median(taken[size]["product"])


def copied_per_second(device: torch.device) -> float:
    """Bytes read and written a second where a large tensor is copied."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    taken = in_turn({size: {"copy": lambda: target.copy_(source)}}, 10, device, "rate of copies", *TURNS)
    return 2 * size / statistics.median(taken[size]["copy"])
