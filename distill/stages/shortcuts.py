"""What models compute in many kernels or slow ones, computed in fewer or faster for as long as a stage trains them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation

#: A GPU multiplies slowly where rows do not begin at a multiple of EIGHT numbers of 16 bits; they get one of ROW.
EIGHT, ROW = 8, 64
#: Outputs from which that is worth a copy of the weights.
MANY = 1024


class TanhGelu(nn.Module):
    """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), for which transformers launches a kernel an operation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class FusedRmsNorm(nn.Module):
    """w x / √(mean x² + ε), for which transformers launches a kernel an operation, all of float32."""

    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch has a kernel where both are of one dtype, which in mixed precision they need not be.
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), epsilon(self))


class AlignedLinear(nn.Linear):
    """For as many outputs as GPT-2 has words, 50,257, a GPU takes several times as long as for 50,304."""

    def forward(self, x: Tensor) -> Tensor:
        return aligned(x, self.weight, self.bias) if x.is_cuda else super().forward(x)


def aligned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b (…, V), with room between its rows that nobody looks at."""
    more = -len(weight) % ROW
    wide = None if bias is None else F.pad(bias, (0, more))
    return F.linear(x, F.pad(weight, (0, 0, 0, more)), wide)[..., : len(weight)]


def epsilon(norm: Any) -> float | None:
    """As families call it."""
    found: float | None = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return found


def is_rms_norm(module: nn.Module) -> bool:
    """Families have classes of their own for it, and some mean something else by its name: so it is tried."""
    if not type(module).__name__.endswith("RMSNorm") or len(signature(module.forward).parameters) != 1:
        return False
    if [*dict(module.named_parameters())] != ["weight"]:
        return False
    weight = module.get_parameter("weight")
    # Small, so that ε counts.
    x = torch.linspace(-1e-3, 2e-3, weight.numel(), dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        found, expected = module(x), F.rms_norm(x, weight.shape, weight, epsilon(module))
        return found.dtype == x.dtype and torch.allclose(found, expected, rtol=1e-2)


def shortcut(module: nn.Module) -> type[nn.Module] | None:
    """The class that computes the same of what this module holds, if there is one.

    Classes derived from these, such as those of quantised weights, compute something else.
    """
    if type(module) in (NewGELUActivation, FastGELUActivation):
        return TanhGelu
    if is_rms_norm(module):
        return FusedRmsNorm
    if type(module) is nn.Linear and module.out_features >= MANY and module.out_features % EIGHT:
        return AlignedLinear
    return None


def take(models: Iterable[nn.Module]) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Modules that compute otherwise from now on, and what they were."""
    taken = []
    for module in (module for model in models for module in model.modules()):
        if (found := shortcut(module)) is not None:
            taken.append((module, type(module)))
            # The very module, so that whoever holds it or its weights need not be told.
            module.__class__ = found
    return taken


@contextmanager
def shortcuts(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, `models` compute the same faster."""
    taken = take(models)
    try:
        yield
    finally:
        for module, before in taken:
            module.__class__ = before
