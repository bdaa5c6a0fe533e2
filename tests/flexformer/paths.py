"""The three ways of a mixer, and which of its rows a comparison may trust."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from distill.flexformer.engine import Features, State, Way, Weighted, scores, with_ones
from distill.flexformer.mixer import Memory, Mixer

from .examples import SHAPE, Inputs

SCALING = SHAPE.head_dim**-0.5
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
#: A mixer's own way by its name.
PATHS: dict[str, Callable[[Mixer], Way]] = {
    "parallel": lambda mixer: mixer.ways.parallel,
    "chunked": lambda mixer: in_chunks_of(mixer, 4),
    "recurrent": lambda mixer: mixer.ways.recurrent,
}


def in_chunks_of(mixer: Mixer, chunk: int) -> Way:
    return partial(mixer.ways.chunked, chunk=chunk)


def run(mixer: Mixer, inputs: Inputs, path: Way, memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """The mixer through `path`, with the extra log-weights on top of its own; padding stays at −∞.

    Under the delta rule they are shares, which are 1 at most: the extra ones are made small enough to count.
    """
    extra = -inputs.extra.abs() / 100 if mixer.decay.erases else inputs.extra
    late = delayed(extra, mixer.width)

    def heavier(features: Features, value: Tensor, state: State) -> tuple[Weighted, State]:
        return path(features._replace(log_weight=features.log_weight + late), value, state)

    return mixer(*inputs[:3], SCALING, inputs.padding, memory, heavier)


def delayed(x: Tensor, width: int) -> Tensor:
    """(…, N) in the linear part's time: key j is in column j + w."""
    return torch.cat([torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], width), x], -1)[..., : x.shape[-1]]


def bounds(features: Features, value: Tensor, state: State) -> tuple[Weighted, State]:
    """A path through Σ_j |S_ij| [v_j, 1]."""
    weights, shift = scores(features)
    sums = (weights.abs() @ with_ones(value)[:, :, None]).flatten(1, 2)
    return Weighted(sums, shift.repeat_interleave(sums.shape[1] // shift.shape[1], 1)), state


def widest(mixer: Mixer) -> Way:
    return mixer.ways.parallel if mixer.decay.erases else bounds


@torch.no_grad()
def trusted_rows(mixer: Mixer, inputs: Inputs) -> Tensor:
    """Rows that divide by something, and not by the small rest of a cancellation: (B, H, N, 1)."""
    if mixer.decay.erases and mixer.normaliser.averages:
        # What the delta rule reads is divided by 1.
        return torch.ones_like(inputs.query[..., :1], dtype=torch.bool)
    normaliser, mixer.normaliser = mixer.normaliser, nn.Identity()
    try:
        found, most = (
            run(mixer, inputs._replace(value=value), path)[0]
            for value, path in ((inputs.value, mixer.ways.parallel), (inputs.value.abs(), widest(mixer)))
        )
    finally:
        mixer.normaliser = normaliser
    columns = slice(-1, None) if normaliser.averages else slice(0, -1)
    found, most = (each[..., columns].norm(dim=-1, keepdim=True) for each in (found, most))
    return (found > 1e-3 * most) | (most == 0)
