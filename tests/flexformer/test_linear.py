"""Whole texts by kernels, run by Triton's interpreter, against the mixer in float64: values, gradients and memory."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.flexformer import linear
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.memory import Memory
from distill.flexformer.mixer import Mixer
from distill.mixer import bare

from .interpreted import DEVICE, close, made, text

PLAIN = bare("exponential", features=16, frequency_scale=1.0, key_weight="quadratic")
#: Heads, key-value heads, head_dim, and what the mixer is.
CASES: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "plain": (HeadShape(2, 2, 16), PLAIN),
    "grouped queries": (HeadShape(4, 2, 16), PLAIN),
    "no power of two": (HeadShape(3, 1, 10), PLAIN | {"features": 23, "key_weight": "linear"}),
    "no key weight": (HeadShape(1, 1, 16), PLAIN | {"key_weight": "none"}),
    "window": (HeadShape(2, 2, 16), PLAIN | {"window": 64}),
    "window of one": (HeadShape(2, 2, 16), PLAIN | {"window": 1}),
    "wide window": (HeadShape(4, 2, 16), PLAIN | {"window": 71}),
}
SCALING = 0.25
#: A chunk and a half.
LENGTH = 96


def tracked(*args: Any) -> list[Tensor]:
    return [each.requires_grad_() for each in text(*args)]


def check(
    name: str, tolerance: float, length: int = LENGTH, size: float = 1.0, absent: Any = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    shape, options = CASES[name]
    mixer, given = made(shape, options), tracked(shape, length, size, dtype)
    exact, wide = deepcopy(mixer).double(), [each.detach().double().requires_grad_() for each in given]
    padding = None
    if absent is not None:
        padding = torch.ones(2, length, dtype=torch.long, device=DEVICE)
        padding[absent] = 0
    found, after = linear.launched(mixer, *given, SCALING, padding, None)
    expected, expected_after = exact(*wide, SCALING, padding, None, exact.ways.chunked)
    assert found.dtype == dtype
    close(found, expected, tolerance, "output")
    for part in Memory._fields:
        close(getattr(after, part), getattr(expected_after, part), tolerance, part)
    weights = torch.randn_like(expected)
    named = dict(mixer.named_parameters())
    ours = torch.autograd.grad((found.double() * weights).sum(), [*given, *named.values()])
    theirs = torch.autograd.grad((expected * weights).sum(), [*wide, *exact.parameters()])
    for what, mine, right in zip(["query", "key", "value", *named], ours, theirs, strict=True):
        # Of a query that sees but one key there is no gradient at all.
        close(mine, right, tolerance, what, 0.1)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula(name: str):
    check(name, 1e-4)


@pytest.mark.parametrize("name", ["grouped queries", "window"])
def test_half_precision(name: str):
    check(name, 1e-2, dtype=torch.bfloat16)


def test_products_of_half_precision():
    """Of float32, as `medium` has it."""
    torch.set_float32_matmul_precision("medium")
    check("window", 1e-2)


@pytest.mark.parametrize("name", ["plain", "window"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_any_length(name: str, length: int):
    check(name, 1e-4, length)


@pytest.mark.parametrize("name", ["grouped queries", "wide window"])
def test_padding_is_not_taken_in(name: str):
    """At the left of the first text and at the right of the second; a text may begin with a chunk of nothing."""
    at = (torch.tensor([0] * 70 + [1] * 9), torch.tensor([*range(70), *range(121, 130)]))
    check(name, 1e-4, 130, absent=at)


@pytest.mark.parametrize("name", ["plain", "window"])
def test_large_logits_do_not_overflow(name: str):
    """|q·k| up to some 200."""
    check(name, 1e-3, size=7.0)


PREFIX = {"one token": 1, "less than the window": 40, "more than a chunk": 70}


@pytest.mark.parametrize("name", ["grouped queries", "window"])
@pytest.mark.parametrize("read", PREFIX.values(), ids=PREFIX)
@torch.no_grad()
def test_it_goes_on_from_a_memory(name: str, read: int):
    shape, options = CASES[name]
    mixer, given = made(shape, options), text(shape, 150)
    padding = torch.ones(2, 150, dtype=torch.long, device=DEVICE)
    padding[0, :50] = 0
    whole, end = linear.launched(mixer, *given, SCALING, padding, None)
    _, memory = linear.launched(mixer, *[each[:, :, :read] for each in given], SCALING, padding[:, :read], None)
    kept = [part.clone() for part in memory]
    rest = [each[:, :, read:] for each in given]
    found, after = linear.launched(mixer, *rest, SCALING, padding[:, read:], memory)
    close(found, whole[:, :, read:].double(), 1e-5)
    for mine, right in zip(after, end, strict=True):
        close(mine, right, 1e-5)
    assert all(torch.equal(*pair) for pair in zip(kept, memory, strict=True))


def test_going_backwards_twice_gives_the_same():
    shape, options = CASES["window"]
    mixer, given = made(shape, options), tracked(shape, 70)
    out, _ = linear.launched(mixer, *given, SCALING, None, None)
    first, second = (torch.autograd.grad(out.sum(), given, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def on_gpu(**changed: Any) -> Any:
    return SimpleNamespace(**{"is_cuda": True, "dtype": torch.float32, "shape": (1, 2, 9, 16)} | changed)


def chosen(mixer: Mixer, given: Any = None) -> bool:
    return linear.has_kernels(mixer, given or on_gpu(), given or on_gpu())


def test_mixers_that_there_are_kernels_for():
    shape = HeadShape(2, 2, 16)
    plain = made(shape, PLAIN)
    assert chosen(plain) and chosen(made(shape, PLAIN | {"window": 4}))
    for other in ({"decay": "fixed"}, {"features": 300}, {"normaliser": "norm"}):
        assert not chosen(made(shape, PLAIN | other))
    assert not chosen(made(shape, bare("hedgehog", features=16))) and not chosen(Mixer(shape, PLAIN, causal=False))
    plain.parts = {"linear"}
    assert not chosen(plain)


def test_texts_that_there_are_kernels_for():
    plain = made(HeadShape(2, 2, 16), PLAIN)
    half: dict[str, Any] = {"shape": (1, 2, 9, 128), "dtype": torch.bfloat16}
    assert chosen(plain, on_gpu(**half))
    for given in (
        {"is_cuda": False}, {"dtype": torch.float64}, {"shape": (1, 2, 9, 128)}, half | {"shape": (1, 2, 9, 200)},
    ):  # fmt: skip
        assert not chosen(plain, on_gpu(**given))
    wide = made(HeadShape(2, 2, 16), PLAIN | {"features": 130})
    assert not chosen(wide) and chosen(wide, on_gpu(dtype=torch.bfloat16)) and not chosen(wide, on_gpu(**half))


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("window", [0, 64])
def test_at_the_sizes_of_a_model(window: int, precision: str, monkeypatch: pytest.MonkeyPatch):
    """Several times, since what one program reads too early is not always wrong."""
    options = PLAIN | {"features": 128, "frequency_scale": 0.3, "window": window}
    monkeypatch.setitem(CASES, "model", (HeadShape(12, 12, 64), options))
    torch.set_float32_matmul_precision(precision)
    for _ in range(3):
        check("model", {"highest": 1e-4, "high": 5e-3, "medium": 2e-2}[precision], 1000)
        check("model", 2e-2, 1000, dtype=torch.bfloat16)
