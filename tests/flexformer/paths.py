"""The engine's three ways as a mixer takes them, and which of its rows a comparison may trust."""

from functools import partial

import torch
from torch import Tensor, nn

from distill.flexformer.engine import Features, State, Weighted, chunked, parallel, recurrent, scores, with_ones
from distill.flexformer.mixer import Memory, Mixer, Path

from .examples import SHAPE, Inputs

SCALING = SHAPE.head_dim**-0.5
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
PATHS: dict[str, Path] = {"parallel": parallel, "chunked": partial(chunked, chunk=4), "recurrent": recurrent}


def run(mixer: Mixer, inputs: Inputs, path: Path, memory: Memory | None = None) -> tuple[Tensor, Memory]:
    """The mixer through `path`, with the extra log-weights on top of its own; padding stays at −∞."""
    late = delayed(inputs.extra, mixer.width)

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


@torch.no_grad()
def trusted_rows(mixer: Mixer, inputs: Inputs) -> Tensor:
    """Rows that divide by something, and not by the small rest of a cancellation: (B, H, N, 1)."""
    normaliser, mixer.normaliser = mixer.normaliser, nn.Identity()
    try:
        found, most = (
            run(mixer, inputs._replace(value=value), path)[0]
            for value, path in ((inputs.value, parallel), (inputs.value.abs(), bounds))
        )
    finally:
        mixer.normaliser = normaliser
    columns = slice(-1, None) if normaliser.averages else slice(0, -1)
    found, most = (each[..., columns].norm(dim=-1, keepdim=True) for each in (found, most))
    return (found > 1e-3 * most) | (most == 0)
