"""A step of decoding as one kernel, run by Triton's interpreter, against the same in float64 by the formulas."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.flexformer import attempt, step
from distill.flexformer import mixer as mixer_module
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.memory import Memory
from distill.flexformer.mixer import Mixer
from distill.mixer import bare

from .interpreted import DEVICE, made, text

SCALING = 0.4
PLAIN = bare("exponential", features=6, frequency_scale=1.0, key_weight="quadratic")
#: Heads, key-value heads, head_dim, and what the mixer is.
CASES: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "plain": (HeadShape(2, 2, 8), PLAIN),
    "grouped queries": (HeadShape(4, 2, 8), PLAIN),
    "no power of two": (HeadShape(3, 1, 6), PLAIN | {"features": 70}),
    "no key weight": (HeadShape(2, 2, 8), PLAIN | {"key_weight": "none"}),
    "linear key weight": (HeadShape(2, 2, 8), PLAIN | {"key_weight": "linear"}),
    "window of one": (HeadShape(2, 1, 8), PLAIN | {"window": 1}),
    "window": (HeadShape(4, 2, 8), PLAIN | {"window": 5}),
    "decay": (HeadShape(2, 2, 8), PLAIN | {"decay": "learned", "decay_groups": 3}),
    "all": (HeadShape(4, 2, 8), PLAIN | {"window": 4, "decay": "learned", "decay_groups": 2, "features": 68}),
}


def token(given: list[Tensor], i: int) -> list[Tensor]:
    return [each[:, :, i : i + 1] for each in given]


def follow(mixer: Mixer, given: list[Tensor], padding: Tensor | None, tolerance: float) -> None:
    """Token after token from nothing, each side with its own memory; the kernel's is as the other's would be."""
    exact = deepcopy(mixer).double()
    wide = [each.double() for each in given]
    ours, theirs = mixer.no_memory(*given[1:]), exact.no_memory(*wide[1:])
    for i in range(given[0].shape[2]):
        real = None if padding is None else padding[:, i : i + 1]
        out, ours = step.launched(mixer, *token(given, i), SCALING, real, ours)
        expected, theirs = exact(*token(wide, i), SCALING, real, theirs, exact.ways.recurrent)
        assert out.dtype == given[2].dtype
        assert_close(out, expected, tolerance)
        for name in Memory._fields:
            assert_close(getattr(ours, name), getattr(theirs, name), tolerance)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    if found.is_floating_point() and found.numel():
        size = expected.abs().clamp(max=1e6).max()
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * float(size))
    else:
        assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_the_formula(name: str):
    shape, options = CASES[name]
    follow(made(shape, options), text(shape, 9), None, 1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("head_dim", [64, 128])
@torch.no_grad()
def test_at_the_sizes_of_a_model(head_dim: int):
    shape, options = HeadShape(12, 12, head_dim), PLAIN | {"features": 128, "frequency_scale": 0.3, "window": 64}
    follow(made(shape, options), text(shape, 150), None, 1e-4)


@pytest.mark.parametrize("name", ["plain", "window", "all"])
@torch.no_grad()
def test_padding_is_not_taken_in(name: str):
    """At the left of the first text, and in the middle of the second; a text may begin with nothing to attend to."""
    shape, options = CASES[name]
    padding = torch.ones(2, 9, dtype=torch.long, device=DEVICE)
    padding[0, :3] = padding[1, 4:6] = 0
    follow(made(shape, options), text(shape, 9), padding, 1e-5)


@pytest.mark.parametrize("name", ["plain", "all"])
@torch.no_grad()
def test_large_logits_do_not_overflow(name: str):
    """|q·k| up to some 200."""
    shape, options = CASES[name]
    follow(made(shape, options), text(shape, 9, 8.0), None, 1e-3)


@pytest.mark.parametrize("name", ["grouped queries", "all"])
@torch.no_grad()
def test_half_precision_goes_in_and_out(name: str):
    """As a mixer reads it token after token: the state is float32, and the window as it came in."""
    shape, options = CASES[name]
    mixer, given = made(shape, options), text(shape, 9, dtype=torch.bfloat16)
    ours = theirs = mixer.no_memory(*given[1:])
    for i in range(9):
        out, ours = step.launched(mixer, *token(given, i), SCALING, None, ours)
        expected, theirs = mixer(*token(given, i), SCALING, None, theirs, mixer.ways.recurrent)
        assert out.dtype == torch.bfloat16 and ours.sums.dtype == torch.float32 and ours.keys.dtype == torch.bfloat16
        torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(ours.sums, theirs.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="a kernel is chosen on a GPU")
@torch.no_grad()
def test_a_mixer_takes_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["all"]
    mixer, given = made(shape, options), text(shape, 9)
    _, memory = mixer(*[each[:, :, :8] for each in given], SCALING)
    expected = step.launched(mixer, *token(given, 8), SCALING, None, memory)
    found = mixer(*token(given, 8), SCALING, None, memory)
    assert all(torch.equal(*pair) for pair in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="a kernel is compiled on a GPU")
@pytest.mark.parametrize("name", ["plain", "all"])
@torch.no_grad()
def test_it_is_a_part_of_what_is_compiled(name: str):
    shape, options = CASES[name]
    mixer, given = made(shape, options), text(shape, 9)
    _, memory = mixer(*[each[:, :, :8] for each in given], SCALING)
    fast = torch.compile(mixer, fullgraph=True, dynamic=False)
    out, kept = fast(*token(given, 8), SCALING, None, memory)
    expected, after = step.launched(mixer, *token(given, 8), SCALING, None, memory)
    for found, right in zip((out, *kept), (expected, *after), strict=True):
        torch.testing.assert_close(found, right)


@torch.no_grad()
def test_nothing_that_came_before_is_written_to():
    shape, options = CASES["all"]
    mixer, given = made(shape, options), text(shape, 4)
    _, memory = mixer(*given, SCALING)
    kept = [part.clone() for part in memory]
    step.launched(mixer, *token(given, 0), SCALING, None, memory)
    assert all(torch.equal(*pair) for pair in zip(kept, memory, strict=True))


class OnGpu:
    """What is looked at of a query or a value."""

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float32, is_cuda: bool = True):
        self.is_cuda, self.dtype, self.shape = is_cuda, dtype, (1, 2, 1, width)


SHAPE = HeadShape(2, 2, 8)
NONE_FOR: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "map": (SHAPE, bare("elu")),
    "gated": (SHAPE, PLAIN | {"decay": "gated"}),
    "delta": (SHAPE, PLAIN | {"decay": "delta", "key_weight": "none"}),
    "norm": (SHAPE, PLAIN | {"normaliser": "norm"}),
    "window": (SHAPE, PLAIN | {"window": 300}),
    "queries": (HeadShape(9, 1, 8), PLAIN),
}


def chosen(mixer: Mixer, query: Any = None, value: Any = None) -> bool:
    return step.has_kernel(mixer, query or OnGpu(), value or OnGpu())


@pytest.mark.parametrize("name", NONE_FOR)
@torch.no_grad()
def test_mixers_that_there_is_no_kernel_for(name: str):
    assert chosen(made(SHAPE, PLAIN))
    assert not chosen(made(*NONE_FOR[name]))


@torch.no_grad()
def test_steps_that_there_is_no_kernel_for(monkeypatch: pytest.MonkeyPatch):
    plain = made(SHAPE, PLAIN)
    for given in (OnGpu(is_cuda=False), OnGpu(dtype=torch.float64), OnGpu(width=200)):
        assert not chosen(plain, given)
    assert not chosen(plain, None, OnGpu(width=200))
    with torch.enable_grad():
        assert not chosen(plain)
    for owner, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, lambda: True)
            assert not chosen(plain)
    plain.parts = {"linear"}
    assert not chosen(plain)


def test_too_little_memory_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch):
    def work() -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        attempt.attempt("this", work)
    assert attempt.possible("this")


@torch.no_grad()
def test_a_kernel_that_cannot_be_built_is_told_of_once(monkeypatch: pytest.MonkeyPatch):
    """And PyTorch does it, then and from then on."""

    class Broken:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("Failed to find C compiler")

    shape, options = CASES["window"]
    mixer, given = made(shape, options), text(shape, 6)
    monkeypatch.setattr(step, "step_kernel", Broken())
    monkeypatch.setattr(mixer_module, "has_kernel", lambda *given: attempt.possible(step.WHAT))
    monkeypatch.setattr(attempt, "_given_up", set())
    _, memory = mixer(*[each[:, :, :5] for each in given], SCALING)
    with pytest.warns(UserWarning, match="PyTorch.*Failed to find C compiler"):
        found, _ = mixer(*token(given, 5), SCALING, None, memory)
    expected, _ = mixer(*token(given, 5), SCALING, None, memory, mixer.ways.recurrent)
    assert torch.equal(found, expected) and not attempt.possible(step.WHAT)
    assert torch.equal(mixer(*token(given, 5), SCALING, None, memory)[0], expected)
