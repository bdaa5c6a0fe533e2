"""The precision that mixers compute in, whatever the model runs in."""

import torch
from torch import Tensor

#: How kernels make products, by what PyTorch is told of those of float32.
MODES = {"medium": "bf16", "high": "tf32", "highest": "tf32x3"}


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def scaled(x: Tensor, scaling: float) -> Tensor:
    """Queries or keys times √scaling, so that the product of both has softmax's scale."""
    return at_least_float32(x) * scaling**0.5


@torch.compiler.assume_constant_result
def products() -> str:
    """What PyTorch is told of products of float32; the compiler, which cannot ask, takes what holds as it compiles."""
    return torch.get_float32_matmul_precision()


def mode(query: Tensor) -> str:
    """How kernels make products: as precise as what comes in, and as PyTorch is told to be."""
    return MODES[products()] if query.dtype == torch.float32 else "bf16"


def held_type(query: Tensor) -> torch.dtype:
    """Of what kernels make products of: queries, keys and values, frequencies, and chunks' sums."""
    return torch.bfloat16 if mode(query) == "bf16" else torch.float32
