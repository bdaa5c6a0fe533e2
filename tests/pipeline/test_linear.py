"""Linear attention by kernels, run by Triton's interpreter, against the engine in float64: values and gradients."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flexformer.interpreted import DEVICE, close, made, text
from torch import Tensor

from distill.bench import linear
from distill.flexformer.engine import NO_KEYS, State, Weighted, chunked
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer
from distill.flexformer.precision import scaled
from distill.mixer import bare

PLAIN = bare("exponential", features=16, frequency_scale=1.0, key_weight="quadratic")
#: Heads, key-value heads, head_dim, and what the mixer is.
CASES: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "plain": (HeadShape(2, 2, 16), PLAIN),
    "grouped queries": (HeadShape(4, 2, 16), PLAIN),
    "no power of two": (HeadShape(3, 1, 10), PLAIN | {"features": 23, "key_weight": "linear"}),
    "no key weight": (HeadShape(1, 1, 16), PLAIN | {"key_weight": "none"}),
}
SCALING = 0.25
#: A chunk and a half.
LENGTH = 96


@pytest.fixture(autouse=True)
def precision() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def tracked(*args: Any) -> list[Tensor]:
    return [each.requires_grad_() for each in text(*args)]


def nothing(mixer: Mixer, given: list[Tensor]) -> State:
    memory = mixer.no_memory(*given[1:])
    return State(memory.sums, memory.maximum)


def exactly(mixer: Mixer, given: list[Tensor], present: Tensor, state: State) -> tuple[Weighted, State]:
    """By the engine, in float64."""
    query, key, value = given
    position = torch.zeros_like(present, dtype=torch.long)
    query, key = scaled(query, SCALING), scaled(key, SCALING)
    return chunked(mixer.features(query, position, key, position, present), value, state, chunk=16)


def check(
    name: str, tolerance: float, length: int = LENGTH, size: float = 1.0, absent: Any = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    shape, options = CASES[name]
    mixer, given = made(shape, options), tracked(shape, length, size, dtype)
    exact, wide = deepcopy(mixer).double(), [each.detach().double().requires_grad_() for each in given]
    present = torch.ones(2, length, dtype=torch.bool, device=DEVICE)
    if absent is not None:
        present[absent] = False
    found, after = linear.linear_attention(mixer, *given, SCALING, present, nothing(mixer, given))
    expected, expected_after = exactly(exact, wide, present, nothing(exact, wide))
    close(found.shift, expected.shift, 1e-5 if dtype == torch.float32 else tolerance)
    close(found.sums, expected.sums, tolerance)
    close(after.sums, expected_after.sums, tolerance)
    close(after.maximum, expected_after.maximum, 1e-5 if dtype == torch.float32 else tolerance)
    weights = torch.randn_like(expected.sums)
    ours = torch.autograd.grad((found.sums.double() * weights).sum(), [*given, *mixer.parameters()])
    theirs = torch.autograd.grad((expected.sums * weights).sum(), [*wide, *exact.parameters()])
    for mine, right in zip(ours, theirs, strict=True):
        close(mine, right, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula(name: str):
    check(name, 1e-4)


@pytest.mark.parametrize("name", ["grouped queries"])
def test_half_precision(name: str):
    check(name, 1e-2, dtype=torch.bfloat16)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_any_length(length: int):
    check("plain", 1e-4, length)


def test_padding_is_not_taken_in():
    """At the left of the first text and at the right of the second; a text may begin with a chunk of nothing."""
    check(
        "grouped queries",
        1e-4,
        130,
        absent=(torch.tensor([0] * 70 + [1] * 9), torch.tensor([*range(70), *range(121, 130)])),
    )


def test_large_logits_do_not_overflow():
    """|q·k| up to some 200."""
    check("plain", 1e-3, size=7.0)


def test_what_there_are_kernels_for():
    """No decay, no other features, and no window, which they know nothing of."""

    def chosen(options: dict[str, Any], **changed: Any) -> bool:
        given: Any = SimpleNamespace(**{"is_cuda": True, "shape": (1, 2, 9, 16)} | changed)
        return linear.has_kernels(made(HeadShape(2, 2, 16), options), given, given)

    assert chosen(PLAIN)
    for other in ({"window": 4}, {"decay": "fixed"}, {"features": 300}):
        assert not chosen(PLAIN | other)
    assert not chosen(bare("hedgehog", features=16))
    assert not chosen(PLAIN, is_cuda=False) and not chosen(PLAIN, shape=(1, 2, 9, 200))


@torch.no_grad()
def test_it_goes_on_from_a_state():
    shape, options = CASES["grouped queries"]
    mixer, given = made(shape, options), tracked(shape, 150)
    present = torch.ones(2, 150, dtype=torch.bool, device=DEVICE)
    whole, end = linear.linear_attention(mixer, *given, SCALING, present, nothing(mixer, given))
    first = [each[:, :, :70] for each in given]
    _, state = linear.linear_attention(mixer, *first, SCALING, present[:, :70], nothing(mixer, given))
    kept = [part.clone() for part in state]
    rest = [each[:, :, 70:] for each in given]
    found, after = linear.linear_attention(mixer, *rest, SCALING, present[:, 70:], state)
    close(found.sums, whole.sums[:, :, 70:].double(), 1e-5)
    for mine, right in zip(after, end, strict=True):
        close(mine, right.double(), 1e-5)
    assert all(torch.equal(*pair) for pair in zip(kept, state, strict=True))
    assert (nothing(mixer, given).maximum == NO_KEYS).all()
