"""A student with something else in the place of its mixers, for as long as it is looked at."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from ..flexformer.build import build_mixer
from ..flexformer.constant import Zero
from ..flexformer.mixer import Mixer
from ..flexformer.model import Flexformer
from ..flexformer.token_mixer import TokenMixer
from ..mixer import bare

#: A layer's mixer → what stands in its place; None where there is no such thing.
Control: TypeAlias = Callable[[Any], TokenMixer | None]


def nothing(mixer: TokenMixer) -> TokenMixer:
    """Attention whose output is 0."""
    return _built(mixer, bare("zero"))


def uniform(mixer: TokenMixer) -> TokenMixer:
    """The mean of all values that are seen."""
    return _built(mixer, bare("constant"))


def key_weight(mixer: TokenMixer) -> TokenMixer | None:
    """Attention that ignores the query: A_ij ∝ e^{w(k_j)}, w as the mixer has learned it."""
    if not isinstance(mixer, Mixer) or not len(mixer.key_weight.coefficients):
        return None
    made: Any = _built(mixer, bare("constant"))
    made.key_weight = mixer.key_weight
    return made


def window_alone(mixer: TokenMixer) -> TokenMixer | None:
    return part(mixer, "window")


def linear_alone(mixer: TokenMixer) -> TokenMixer | None:
    return part(mixer, "linear")


def part(mixer: TokenMixer, name: str) -> TokenMixer | None:
    """One of the `flexformer.mixer.PARTS` alone, of a mixer that has both."""
    if not isinstance(mixer, Mixer) or not mixer.width or isinstance(mixer.map, Zero):
        return None
    # Shallow: the weights stay the mixer's own.
    alone = copy.copy(mixer)
    alone.parts = {name}
    return alone


#: What a student is held against, by name: from nothing at all to everything but one part.
CONTROLS: dict[str, Control] = {
    "zero": nothing,
    "uniform": uniform,
    "key_weight": key_weight,
    "window": window_alone,
    "linear": linear_alone,
}


def _built(mixer: TokenMixer, options: dict[str, Any]) -> TokenMixer:
    # Nothing of it is a tensor, so that it is wherever it is used. What projects along the sequence sees both ways.
    return build_mixer(mixer.shape, options, getattr(mixer, "causal", False))


@contextmanager
def replaced(student: Flexformer, mixers: dict[int, TokenMixer]) -> Iterator[None]:
    """The student with these in the place of its own, by layer, inside the block."""
    modules: Any = {layer: student.lm.get_submodule(student.config.layers[layer]["module"]) for layer in mixers}
    own = {layer: module.mixer for layer, module in modules.items()}
    for layer, module in modules.items():
        module.mixer = mixers[layer]
    try:
        yield
    finally:
        for layer, module in modules.items():
            module.mixer = own[layer]
