"""The map loss of one layer and one text: streamed, block by block, and through N × N."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from ..capture import Heads
from ..flexformer.engine import grouped, hidden
from ..flexformer.mixer import Mixer
from ..flexformer.weights import log_weights
from ..map_stream import stream_kl, streams
from ..maploss import kl_in_blocks, log_teacher, row_kl
from ..measure.steps import Step
from .layer import Layer, error

#: Tokens beyond the window on which every way is held against the formula in float64.
CHECKED = 512
#: The longest text that a way is timed with, tokens: a longer one takes it a quarter of a minute, or has no room.
LONGEST = {"dense (compiled)": 16384, "in blocks": 16384}
#: KL (B, K, G, N) of one layer's maps.
Loss = Callable[[Mixer, Heads], Tensor]


def floor(layer: Layer, length: int, multiplied: float, copied: float) -> float:
    """Seconds that the products take that a step cannot do without: of every pair that is seen q·k and φ_q·φ_k, and the
    gradients for both features. What is computed a second time does not count."""
    pairs = layer.shape.heads * length**2 / 2
    return pairs * (2 * layer.shape.head_dim + 6 * layer.feature_dim) / multiplied


def dense(mixer: Mixer, heads: Heads) -> Tensor:
    whole = mixer.whole(heads.query, heads.key, heads.scaling)
    return row_kl(log_teacher(heads), log_weights(whole))


def in_blocks(mixer: Mixer, heads: Heads) -> Tensor:
    whole = mixer.whole(heads.query, heads.key, heads.scaling)
    return kl_in_blocks(whole, heads, torch.arange(heads.key.shape[2], device=heads.key.device))


def streamed(mixer: Mixer, heads: Heads) -> Tensor:
    return stream_kl(mixer, heads, torch.arange(heads.key.shape[2], device=heads.key.device))


def losses(layer: Layer) -> dict[str, Loss]:
    """Those that there are on this machine, for this mixer."""
    # Plain, it is no rival on a GPU, and has the larger memory.
    on_gpu = layer.device.type == "cuda"
    found: dict[str, Loss] = {"dense (compiled)": torch.compile(dense, dynamic=False)} if on_gpu else {"dense": dense}
    found["in blocks"] = in_blocks
    if streams(layer.mixer(), layer.heads(16)):
        found["streamed"] = streamed
    return found


def ways(layer: Layer) -> dict[str, Callable[[int], Step | None]]:
    mixer = layer.mixer()

    def make(name: str, loss: Loss, length: int) -> Step | None:
        if length > LONGEST.get(name, length):
            return None
        heads = layer.heads(length)

        def step() -> None:
            mixer.zero_grad()
            loss(mixer, heads).mean().backward()  # type: ignore[no-untyped-call]

        return step

    return {name: partial(make, name, loss) for name, loss in losses(layer).items()}


def errors(layer: Layer) -> dict[str, float]:
    """By way, of the gradient for the mixer's first parameter, against float64."""
    mixer, heads = layer.mixer(), layer.heads(CHECKED + layer.options["window"])
    exact = deepcopy(mixer).double()
    query, key = heads.query.double(), heads.key.double()
    whole = exact.whole(query, key, heads.scaling)
    logits = grouped(query, key) @ key[:, :, None].mT * heads.scaling
    teacher = logits.masked_fill(hidden(logits, None), -torch.inf).log_softmax(-1)
    right = gradient(row_kl(teacher, log_weights(whole)), exact)
    return {name: error(gradient(loss(mixer, heads), mixer), right) for name, loss in losses(layer).items()}


def gradient(loss: Tensor, mixer: Mixer) -> Tensor:
    return torch.autograd.grad(loss.mean(), next(mixer.parameters()))[0]
