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
    "favor": [({"features": 6, "redraw_every": 0}, kernels.favor)],
    "rfa": [({"features": 9}, kernels.rfa)],
    "hedgehog": [({"features": 11}, kernels.hedgehog)],
    "t2r": [({"features": 5}, kernels.t2r)],
    "elu": [({}, kernels.elu)],
    # Further than any test is long.
    "cosformer": [({"horizon": 200}, kernels.cosformer)],
    "identity": [({}, kernels.identity)],
    "constant": [({}, kernels.constant)],
    "zero": [({}, kernels.zero)],
}

#: Two query heads per key-value head.
SHAPE = HeadShape(heads=4, kv_heads=2, head_dim=4)

#: The keys that every mixer has, as in the plainest one.
PLAIN = {
    "key_weight": "none",
    "decay": "none",
    "decay_groups": 1,
    "normaliser": "sum",
    "window": 0,
    "frozen": False,
}
FIXED, SELECTIVE, NORM, WINDOW = {"decay": "fixed"}, {"decay": "selective"}, {"normaliser": "norm"}, {"window": 3}
LEARNED, GATED = ({"decay": decay, "decay_groups": 2} for decay in ("learned", "gated"))
DELTA = {"decay": "delta"}
QUADRATIC, FROZEN = {"key_weight": "quadratic"}, {"frozen": True}
PRODUCT = FOURIER | {"features": 20, "positive": True, "order": 2}

#: The other parts with some of the maps: name → options. Two groups of features need an even number of atoms.
COMPOSITIONS: list[tuple[str, dict[str, Any]]] = [
    ("exponential", {"key_weight": "linear"}),
    *(("exponential", {"features": 6} | each) for each in (FIXED, LEARNED, GATED, SELECTIVE, NORM, WINDOW, FROZEN)),
    ("exponential", {"features": 6} | WINDOW | LEARNED | QUADRATIC),
    ("exponential", {"features": 6} | WINDOW | SELECTIVE | NORM),
    ("nonstationary", PRODUCT | LEARNED | QUADRATIC),
    ("nonstationary", PRODUCT | GATED | WINDOW | QUADRATIC | FROZEN),
    ("nonstationary", SIGNED | WINDOW | FIXED),
    ("spectral", {"features": 12} | GATED | NORM),
    ("spectral", {"features": 12} | WINDOW | GATED | QUADRATIC),
    ("identity", FIXED | NORM),
    ("identity", GATED | NORM),
    ("identity", SELECTIVE | NORM),
    ("identity", WINDOW | GATED | NORM),
    ("constant", LEARNED | QUADRATIC | {"decay_groups": 1}),
    ("constant", WINDOW | QUADRATIC),
    ("zero", WINDOW),
    ("zero", WINDOW | NORM),
    ("favor", FIXED | QUADRATIC),
    ("favor", WINDOW | LEARNED),
    ("cosformer", LEARNED),
    ("cosformer", WINDOW | GATED),
    ("stationary", SIGNED | DELTA),
    ("stationary", SIGNED | DELTA | WINDOW),
    ("stationary", SIGNED | DELTA | FROZEN),
    ("nonstationary", SIGNED | DELTA | NORM),
    ("nonstationary", PRODUCT | DELTA | WINDOW),
    ("exponential", {"features": 6} | DELTA),
    ("hedgehog", {"features": 11} | DELTA | WINDOW | NORM),
    ("identity", DELTA),
    ("favor", DELTA | WINDOW),
]


class Case(NamedTuple):
    """One row: how to build the mixer, and what the atoms add to κ(map, h, g, q, k, i, j), for the query of head h
    at position i and the key of head g at position j.
    """

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


def describe(name: str, options: dict[str, Any]) -> str:
    form = {True: f"-order{options.get('order')}", False: "-signed", None: ""}[options.get("positive")]
    parts = [f"{key}={options[key]}" for key in PLAIN if options[key] != PLAIN[key]]
    return "-".join([f"{name}{form}", *parts])


def compose(name: str, options: dict[str, Any], kernel: Callable[..., Tensor]) -> Case:
    whole = {"map": name} | PLAIN | options
    return Case(describe(name, whole), whole, kernel)


def completed(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Tensor]]:
    """With what the map's own examples say of the rest, and the kernel of the one that is of its form."""
    own, kernel = next(each for each in EXAMPLES[name] if each[0].get("positive") in (None, options.get("positive")))
    return own | options, kernel


CASES = [
    *(
        compose(name, options | {"key_weight": key_weight}, kernel)
        for name, examples in EXAMPLES.items()
        for options, kernel in examples
        # A quadratic one has a linear part.
        for key_weight in ("none", "quadratic")
    ),
    *(compose(name, *completed(name, options)) for name, options in COMPOSITIONS),
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
