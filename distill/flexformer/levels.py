"""What kernels take of mixers whose features they do not make themselves: φ, and one number of each key and query."""

from typing import Any, NamedTuple

from torch import Tensor

from .decay import NoDecay
from .exponential import Exponential
from .precision import scaled


class Levels(NamedTuple):
    """φ_q (B, H, N, F), φ_k (B, K, L, F), w (B, K, L), and g (B, H, N), None without a window.

    The linear part weighs key j for query i by e^{w_j + g_i} φ_q(q_i)·φ_k(k_j).
    """

    query: Tensor
    key: Tensor
    weight: Tensor
    gate: Tensor | None

    def in_place(self) -> tuple[Tensor, ...]:
        """Where kernels take `parameters`: φ in the place of frequencies, w and g in that of what they are made of."""
        # In the place of what there is not stands something that is not read.
        none = self.weight.detach()
        gate = none if self.gate is None else self.gate
        given = self.query, none, self.key, none, self.weight, none, gate, none, none
        return tuple(each.contiguous() for each in given)


def fused(mixer: Any) -> bool:
    """Whether kernels make the features of `mixer`, too."""
    return type(mixer.map) is Exponential


def leveled(mixer: Any) -> bool:
    """Whether `mixer` can be told so: of a positive map and without decay, whose sums over long texts lose digits."""
    return bool(mixer.map.positive and type(mixer.decay) is NoDecay)


def levels(mixer: Any, query: Tensor, key: Tensor, scaling: float, present: Tensor, position: Tensor) -> Levels:
    """Of q (B, H, N, D) and k (B, K, L, D), which end with the queries' own and may begin with what a window remembers.

    present, position (B, L): the keys'.
    """
    query, key = scaled(query, scaling), scaled(key, scaling)
    made = mixer.features(query, position[:, -query.shape[2] :], key, position, present)
    weight = made.log_weight.masked_fill(~present[:, None], 0.0)
    return Levels(made.query, made.key, weight, None if mixer.window is None else mixer.gate(query))
