"""What tests of kernels begin with: mixers and texts where the kernels run, and what is near enough."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.flexformer.attempt import SHARED
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

#: Where there is no GPU, Triton's interpreter reads memory of the processor.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def with_room(monkeypatch: pytest.MonkeyPatch, shared: int = SHARED) -> None:
    """As on a GPU whose warps share so many bytes."""
    told = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)


def made(shape: HeadShape, options: dict[str, Any]) -> Mixer:
    """A mixer with parameters that all matter."""
    torch.manual_seed(0)
    mixer = Mixer(shape, options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.5)
    return mixer.to(DEVICE)


def text(
    shape: HeadShape, length: int, size: float = 1.0, dtype: torch.dtype = torch.float32, texts: int = 2
) -> list[Tensor]:
    """q, k and v of so many texts; size: of the numbers in queries and keys."""
    counts = ((shape.heads, size), (shape.kv_heads, size), (shape.kv_heads, 1.0))
    drawn = [scale * torch.randn(texts, count, length, shape.head_dim, device=DEVICE) for count, scale in counts]
    return [each.to(dtype) for each in drawn]


def close(found: Tensor, expected: Tensor, tolerance: float, what: str = "", least: float = 1e-30) -> None:
    """By the norm of what there is, or what else is the least that an error is compared with."""
    assert found.shape == expected.shape
    if not found.is_floating_point():
        assert torch.equal(found, expected)
        return
    error = (found.double() - expected).norm() / expected.norm().clamp(min=least)
    assert error <= tolerance, f"{what}: {error:.2e} off"
