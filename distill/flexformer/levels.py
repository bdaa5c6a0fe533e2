"""What kernels take of mixers whose features they do not make themselves: φ, and one number of each key and query."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from .decay import NoDecay
from .exponential import Exponential
from .precision import scaled


class Levels(NamedTuple):
    """φ_q (B, H, N, F), φ_k (B, K, L, F), w (B, K, L), g (B, H, N), and c (B, K) at the end.

    The linear part weighs key j for query i by e^{w_j + g_i} φ_q(q_i)·φ_k(k_j): a decay, L_ij = e^{c_i − c_j} with
    c = Σ log γ, is a part of both.
    """

    query: Tensor
    key: Tensor
    weight: Tensor
    gate: Tensor
    faded: Tensor


def fused(mixer: Any) -> bool:
    """Whether kernels make the features of `mixer`, too: exponential ones, without decay."""
    return type(mixer.map) is Exponential and type(mixer.decay) is NoDecay


def leveled(mixer: Any) -> bool:
    """Whether `mixer` can be told so: of kernels above 0, with no more than one decay."""
    return bool(mixer.map.positive and mixer.groups == 1 and not mixer.decay.erases)


def levels(mixer: Any, query: Tensor, key: Tensor, scaling: float, present: Tensor, position: Tensor) -> Levels:
    """Of q (B, H, N, D) and k (B, K, L, D), which end with the queries' own: L = N where a text begins, and where it
    goes on W + N, beginning with what the window remembers. present, position (B, L): the keys'.
    """
    length, query = query.shape[2], scaled(query, scaling)
    made = mixer.features(query, position[:, -length:], scaled(key, scaling), position, present)
    since = made.log_decay[..., 0].cumsum(-1)
    # Where a text goes on, what leaves the window when query i comes is key i; otherwise it is i − w.
    faded = pad(since, (mixer.width - (key.shape[2] - length), 0))[..., :length]
    gate = faded.repeat_interleave(query.shape[1] // key.shape[1], 1)
    if mixer.window is not None:
        gate = gate + mixer.gate(query)
    weight = made.log_weight.masked_fill(~present[:, None], 0.0) - since
    return Levels(made.query, made.key, weight, gate, faded[..., -1])
