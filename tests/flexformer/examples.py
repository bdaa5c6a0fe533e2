"""The table that the contract runs over: example options and the closed form of every feature map.

A new map needs its line here, and has all tests of this folder for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from . import kernels

FOURIER = {"frequency_scale": 1.0}
SIGNED = FOURIER | {"features": 9, "positive": False, "order": 1}
#: Two atoms each, and one or two features left unused.
PRODUCTS = [
    FOURIER | {"features": features, "positive": True, "order": order} for order, features in ((1, 7), (2, 20), (3, 55))
]

EXAMPLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "stationary": [(SIGNED, kernels.stationary), *((options, kernels.stationary_product) for options in PRODUCTS)],
    "nonstationary": [
        (SIGNED, kernels.nonstationary),
        *((options, kernels.nonstationary_product) for options in PRODUCTS),
    ],
    "exponential": [({"features": 5, "frequency_scale": 1.0}, kernels.exponential)],
    "spectral": [({"features": 10, "frequency_scale": 1.0, "amplitude_scale": 1.0}, kernels.spectral)],
    "favor": [({"features": 6}, kernels.favor)],
}

#: Two query heads per key-value head.
SHAPE = HeadShape(heads=4, kv_heads=2, head_dim=4)


class Case(NamedTuple):
    """One row: how to build the mixer, and κ(map, h, g, q, k) for one query of head h and one key of head g."""

    name: str
    options: dict[str, Any]
    kernel: Callable[..., Tensor]

    def mixer(self, seed: int = 0, shape: HeadShape = SHAPE) -> Mixer:
        """In float64, every parameter random, so that no term of the formula is at a value where it vanishes."""
        torch.manual_seed(seed)
        return randomise(Mixer(shape, self.options).double())


def randomise(mixer: Mixer) -> Mixer:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.7)
    return mixer


def describe(name: str, options: dict[str, Any], key_weight: str) -> str:
    form = {True: f"-order{options.get('order')}", False: "-signed", None: ""}[options.get("positive")]
    return f"{name}{form}-{key_weight}"


CASES = [
    Case(describe(name, options, key_weight), {"map": name, "key_weight": key_weight, **options}, kernel)
    for name, examples in EXAMPLES.items()
    for options, kernel in examples
    for key_weight in ("none", "linear", "quadratic")
]


class Inputs(NamedTuple):
    """q (B, H, N, D), k and v (B, K, N, D), extra key log-weights (B, K, N), and the padding mask (B, N)."""

    query: Tensor
    key: Tensor
    value: Tensor
    extra: Tensor
    padding: Tensor


def draw(
    seed: int, length: int, batch: int = 2, shape: HeadShape = SHAPE, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Row 0 is padded on the left, row 1 on the right, any further row not at all."""
    source = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads, length, shape.head_dim, generator=source, dtype=torch.float64).to(dtype)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    extra = torch.empty(batch, shape.kv_heads, length, dtype=torch.float64).uniform_(-200, 200, generator=source)
    padding = torch.ones(batch, length, dtype=torch.long)
    padding[0, : length // 3] = 0
    padding[1:2, length - length // 4 :] = 0
    return Inputs(query, key, value, extra, padding)
