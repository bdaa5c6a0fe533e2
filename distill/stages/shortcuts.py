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
    """`normalised`, for which transformers launches a kernel an operation."""

    def forward(self, x: Tensor) -> Tensor:
        return normalised(self, x)


class NarrowRmsNorm(nn.Module):
    """The same of the dtype of x, as OLMo 2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        return normalised(self, x).to(x.dtype)


class AlignedLinear(nn.Linear):
    """For as many outputs as GPT-2 has words, 50,257, a GPU takes several times as long as for 50,304."""

    def forward(self, x: Tensor) -> Tensor:
        return aligned(x, self.weight, self.bias) if x.is_cuda else super().forward(x)


def aligned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b (…, V), with room between its rows that nobody looks at."""
    more = -len(weight) % ROW
    wide = None if bias is None else F.pad(bias, (0, more))
    return F.linear(x, F.pad(weight, (0, 0, 0, more)), wide)[..., : len(weight)]


def normalised(norm: Any, x: Tensor) -> Tensor:
    """w x / √(mean x² + ε), of the wider dtype of both."""
    weight = norm.weight
    # As families call it.
    epsilon = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    # PyTorch has a kernel where both are of one dtype, and in mixed precision would make it float32.
    wide = torch.promote_types(x.dtype, weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), epsilon)


def rms_norm(module: nn.Module) -> type[nn.Module] | None:
    """Which of both a family's own class is, as it is tried; None of what is another by its name."""
    named = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    if not named or len(signature(module.forward).parameters) != 1:
        return None
    if [*dict(module.named_parameters())] != ["weight"] or module.get_parameter("weight").dim() != 1:
        return None
    weight = module.get_parameter("weight")
    # Small, so that ε counts, and large; of few digits, which tells whether what comes of it has more.
    row = torch.linspace(-1e-3, 2e-3, len(weight), device=weight.device)
    x = torch.stack([row, 1e5 * row])[None].to(torch.bfloat16)
    with torch.no_grad():
        try:
            found, expected = module.forward(x), normalised(module, x)
            # Of noughts alone, as some weights are drawn, nothing is to be told.
            same = expected.any() and torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=0)
        except Exception:  # Somebody's own code, which wants something else.
            return None
    return {x.dtype: NarrowRmsNorm, expected.dtype: FusedRmsNorm}.get(found.dtype) if same else None


def shortcut(module: nn.Module) -> type[nn.Module] | None:
    """The class that computes the same of what this module holds, if there is one.

    Classes derived from these, such as those of quantised weights, compute something else.
    """
    if type(module) in (NewGELUActivation, FastGELUActivation):
        return TanhGelu
    if type(module) is nn.Linear and module.out_features >= MANY and module.out_features % EIGHT:
        return AlignedLinear
    return rms_norm(module)


def take(models: Iterable[nn.Module]) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Modules that compute otherwise from now on, and what they were."""
    modules = dict.fromkeys(module for model in models for module in model.modules())
    found = {module: kind for module in modules if (kind := shortcut(module)) is not None}
    taken = [(module, type(module)) for module in found]
    for module, kind in found.items():
        # The very module, so that whoever holds it or its weights need not be told.
        module.__class__ = kind
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
