"""The parameters of a mixer of exponential features, as kernels take them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def parameters(mixer: Any) -> tuple[Tensor, ...]:
    """Frequencies and biases, the key weight's two coefficients, and the gate's three."""
    features = mixer.map
    # In the place of what a mixer does not have stands something that is not read.
    none = features.key_bias.detach()
    weights = [*_listed(mixer.key_weight.coefficients), none, none][:2]
    gate = [none] * 3 if mixer.window is None else [mixer.window.bias, *_listed(mixer.window.coefficients)]
    given = [features.query_frequency, features.query_bias, features.key_frequency, features.key_bias, *weights, *gate]
    return tuple(each.contiguous() for each in given)


def zeros(given: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """For gradients that programs add up: float32, all in one, and as large as each."""
    filled = given[0].new_zeros(sum(each.numel() for each in given), dtype=torch.float32)
    return filled, apart(filled, given)


def apart(filled: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
    parts = filled.split([each.numel() for each in given])
    return [each.view(like.shape) for each, like in zip(parts, given, strict=True)]


def _listed(coefficients: nn.ParameterList) -> list[Tensor]:
    """By number: PyTorch 2.11 cannot compile the unpacking of such a list."""
    return [coefficients[power] for power in range(len(coefficients))]
