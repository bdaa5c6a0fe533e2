"""A mixer: what stands in an attention layer in softmax's place."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .engine import Features, State, chunked, recurrent
from .exponential import Exponential
from .favor import Favor
from .feature_map import FeatureMap, HeadShape
from .fourier import nonstationary, stationary
from .key_weight import KeyWeight
from .spectral import Spectral

#: Every feature map by the name that configurations use. A new map is one new file and one line here.
MAPS: dict[str, Callable[..., FeatureMap]] = {
    "stationary": stationary,
    "nonstationary": nonstationary,
    "exponential": Exponential,
    "spectral": Spectral,
    "favor": Favor,
}


class Mixer(nn.Module):
    """Weights A_ij ∝ e^{w(k_j)} φ_q(q_i)·φ_k(k_j), j ≤ i, from a feature map and a key weight.

    options: {"map": a name in MAPS, "key_weight": none | linear | quadratic, …the map's own arguments}.
    """

    def __init__(self, shape: HeadShape, options: Mapping[str, Any]):
        super().__init__()
        build, arguments = check_options(options)
        self.map = build(shape, **arguments)
        self.key_weight = KeyWeight(shape, options["key_weight"])

    def features(self, query: Tensor, key: Tensor, scaling: float, padding: Tensor | None = None) -> Features:
        """Features of q (B, H, N, D) and k (B, K, N, D); `scaling` is softmax's, `padding` (B, N) is 0 at padding."""
        root = scaling**0.5
        query, key = _at_least_float32(query) * root, _at_least_float32(key) * root
        key_features, log_scale = self.map.key_features(key)
        log_weight = self.key_weight(key)
        if log_scale is not None:
            log_weight = log_weight + log_scale
        if padding is not None:
            log_weight = log_weight.masked_fill(padding[:, None] == 0, -torch.inf)
        return Features(self.map.query_features(query), key_features, log_weight, self.map.epsilon)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        padding: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """o (B, H, N, D) in the dtype of `value`, and the state to go on from."""
        with torch.autocast(query.device.type, enabled=False):
            features = self.features(query, key, scaling, padding)
            attend = recurrent if state is not None and query.shape[2] == 1 else chunked
            out, state = attend(features, _at_least_float32(value), state)
        return out.to(value.dtype), state


def check_options(options: Mapping[str, Any]) -> tuple[Callable[..., FeatureMap], dict[str, Any]]:
    """The map's constructor and its arguments; ValueError names what is unknown or missing."""
    if not isinstance(options.get("map"), str) or options["map"] not in MAPS:
        raise ValueError(f"mixer.map={options.get('map')} is unknown; known: {', '.join(MAPS)}")
    build = MAPS[options["map"]]
    arguments = {name: value for name, value in options.items() if name not in ("map", "key_weight")}
    kinds = {name: each.annotation for name, each in inspect.signature(build).parameters.items() if name != "shape"}
    takes = set(kinds)
    for name in sorted(arguments.keys() - takes):
        raise ValueError(f"mixer.{name} is unknown to mixer={options['map']}; it takes {', '.join(sorted(takes))}")
    for name in sorted((takes | {"key_weight"}) - options.keys()):
        raise ValueError(f"mixer.{name} is missing")
    for name, value in arguments.items():
        if type(value) not in ((int, float) if kinds[name] is float else (kinds[name],)):
            raise ValueError(f"mixer.{name}={value} is of the wrong type: give {kinds[name].__name__}")
    return build, arguments


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
