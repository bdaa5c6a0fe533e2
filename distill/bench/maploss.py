"""The map loss of one layer, forwards and backwards: streamed, block by block, and through N × N, side by side."""

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..capture import Heads
from ..flexformer.feature_map import HeadShape
from ..flexformer.mixer import Mixer
from ..flexformer.weights import log_weights
from ..map_stream import stream_kl, streams
from ..maploss import kl_in_blocks, log_teacher, row_kl
from ..measure.cost import peak_bytes
from ..measure.steps import Step
from ..measure.turns import in_turn, out_of_memory

#: Rounds that are timed, after so many to warm up.
TURNS = 5, 1
#: Tokens of the text on which every way is held against the formula in float64.
CHECKED = 512
#: KL (B, K, G, N) of one layer's maps.
Loss = Callable[[Mixer, Heads], Tensor]


@dataclass(frozen=True)
class Layer:
    """What is timed: one text, of one layer whose mixer has these options."""

    shape: HeadShape
    options: dict[str, Any]
    device: torch.device

    def mixer(self) -> Mixer:
        torch.manual_seed(0)
        return Mixer(self.shape, self.options).to(self.device)

    def heads(self, length: int) -> Heads:
        heads, kv_heads, head_dim = self.shape
        counts = heads, kv_heads, kv_heads
        query, key, value = (torch.randn(1, count, length, head_dim, device=self.device) for count in counts)
        return Heads(torch.nn.Identity(), query, key, value, head_dim**-0.5)

    def operations(self, length: int) -> float:
        """Floating-point, that a step cannot do without: of every pair that is seen the products q·k and φ_q·φ_k, and
        the gradients for both features. What is computed a second time does not count."""
        pairs = self.shape.heads * length**2 / 2
        return pairs * (2 * self.shape.head_dim + 6 * self.options["features"])


@dataclass(frozen=True)
class Measured:
    """seconds and peak_bytes of a way at a length, the latter None on a CPU."""

    way: str
    length: int
    seconds: float
    peak_bytes: int | None


def dense(mixer: Mixer, heads: Heads) -> Tensor:
    whole = mixer.whole(heads.query, heads.key, heads.scaling)
    return row_kl(log_teacher(heads), log_weights(whole))


def in_blocks(mixer: Mixer, heads: Heads) -> Tensor:
    whole = mixer.whole(heads.query, heads.key, heads.scaling)
    return kl_in_blocks(whole, heads, torch.arange(heads.key.shape[2]))


def streamed(mixer: Mixer, heads: Heads) -> Tensor:
    whole = mixer.whole(heads.query, heads.key, heads.scaling)
    return stream_kl(whole, heads, torch.arange(heads.key.shape[2], device=heads.key.device))


def ways(layer: Layer) -> dict[str, Loss]:
    """Those that there are on this machine, for this mixer."""
    found: dict[str, Loss] = {"dense": dense, "in blocks": in_blocks}
    if layer.device.type == "cuda":
        # The plain one is no rival to it, and has the larger memory.
        found = {"dense (compiled)": torch.compile(dense), "in blocks": in_blocks}
    heads = layer.heads(16)
    if streams(layer.mixer().whole(heads.query, heads.key, heads.scaling)):
        found["streamed"] = streamed
    return found


def time_maploss(layer: Layer, lengths: list[int]) -> list[Measured]:
    mixer, steps = layer.mixer(), dict[int, dict[str, Step]]()
    left = ways(layer)
    for length in sorted(lengths):
        heads, fitting = layer.heads(length), {}
        for name, loss in left.items():
            step = training_step(loss, mixer, heads)
            try:
                step()
            except RuntimeError as problem:
                if not out_of_memory(problem):
                    raise
            else:
                fitting[name] = step
        left = {name: left[name] for name in fitting}
        steps[length] = fitting
    seconds = in_turn(steps, 1, layer.device, "map loss", *TURNS)
    return [
        Measured(
            way,
            length,
            statistics.median(taken),
            peak_bytes(steps[length][way], layer.device) if layer.device.type == "cuda" else None,
        )
        for length, by_way in seconds.items()
        for way, taken in by_way.items()
    ]


def training_step(loss: Loss, mixer: Mixer, heads: Heads) -> Step:
    def step() -> None:
        mixer.zero_grad()
        loss(mixer, heads).mean().backward()  # type: ignore[no-untyped-call]

    return step


def errors(layer: Layer) -> dict[str, float]:
    """By way, of the gradient of the frequencies, the largest error over the largest value, against float64."""
    mixer, heads = layer.mixer(), layer.heads(CHECKED)
    exact = deepcopy(mixer).double()
    whole = exact.whole(heads.query.double(), heads.key.double(), heads.scaling)
    right = gradient(row_kl(log_teacher(heads).double(), log_weights(whole)), exact)
    found = {}
    for name, loss in ways(layer).items():
        mine = gradient(loss(mixer, heads), mixer).double()
        found[name] = float((mine - right).abs().max() / right.abs().max())
    return found


def gradient(loss: Tensor, mixer: Mixer) -> Tensor:
    """For the first of the map's parameters."""
    return torch.autograd.grad(loss.mean(), next(mixer.map.parameters()))[0]


def multiplied_per_second(device: torch.device, size: int = 8192) -> float:
    """Floating-point operations of a product of bfloat16 matrices a second, here and now: the ceiling."""
    size = size if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    taken = in_turn({size: {"product": lambda: left @ right}}, 10, device, "ceiling", *TURNS)
    return 2 * size**3 / statistics.median(taken[size]["product"])
