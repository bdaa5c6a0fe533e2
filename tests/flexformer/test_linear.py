"""Whole texts by kernels, run by Triton's interpreter, against the mixer in float64: values, gradients and memory."""

import sys
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from distill.flexformer import attempt, linear, linear_layout
from distill.flexformer import mixer as mixer_module
from distill.flexformer.attempt import SHARED
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.memory import Memory
from distill.flexformer.mixer import Mixer
from distill.flexformer.tiles import summed
from distill.mixer import bare

from .interpreted import DEVICE, close, made, text, with_room

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
    "tiles": (HeadShape(2, 1, 16), PLAIN | {"features": 130}),
    "tiles beside a window": (HeadShape(1, 1, 10), PLAIN | {"features": 192, "window": 64}),
}
WAVES = bare("", features=27, frequency_scale=0.15, key_weight="quadratic")
#: Others than exponential features, which PyTorch makes.
OTHERS: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "spectral": (HeadShape(2, 1, 16), WAVES | {"map": "spectral", "amplitude_scale": 0.3, "window": 64}),
    "products": (HeadShape(2, 2, 16), WAVES | {"map": "nonstationary", "positive": True, "order": 3}),
    "hedgehog": (HeadShape(2, 1, 16), bare("hedgehog", features=32)),
    "cosformer": (HeadShape(2, 2, 16), bare("cosformer", horizon=200, window=5)),
    "t2r": (HeadShape(4, 2, 16), bare("t2r", features=32, window=71)),
}
SCALING = 0.25
#: A chunk and a half.
LENGTH = 96
#: What a test replaces.
SPANNED = linear_layout.spanned


@triton.jit
def summed_kernel(x, weight, out, SIZE: tl.constexpr):
    n = tl.arange(0, SIZE)
    found = summed(tl.load(x + n[:, None] * SIZE + n[None, :]), tl.load(weight + n), "bf16")
    tl.store(out + n, found)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch):
    """A text of three chunks has two parts."""
    monkeypatch.setattr(linear_layout, "spanned", lambda *given: 2)


def tracked(*args: Any) -> list[Tensor]:
    return [each.requires_grad_() for each in text(*args)]


def check(
    name: str, tolerance: float, length: int = LENGTH, size: float = 1.0, absent: Any = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    shape, options = (CASES | OTHERS)[name]
    # Two take the interpreter twice as long, and are for what may differ in them.
    texts = 1 if absent is None and DEVICE == "cpu" else 2
    mixer, given = made(shape, options), tracked(shape, length, size, dtype, texts)
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


@pytest.mark.parametrize("name", CASES | OTHERS)
def test_it_is_the_formula(name: str):
    check(name, 1e-4)


@pytest.mark.parametrize("name", ["grouped queries", "window", "tiles beside a window", "spectral", "hedgehog"])
def test_half_precision(name: str):
    # Of features that come rounded, twice as far off.
    check(name, 1e-2 if name in CASES else 2e-2, dtype=torch.bfloat16)


def test_products_of_half_precision():
    """Of float32, as `medium` has it."""
    torch.set_float32_matmul_precision("medium")
    check("window", 2e-2)


@pytest.mark.parametrize("name", ["plain", "window"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_any_length(name: str, length: int):
    check(name, 1e-4, length)


@pytest.mark.parametrize("name", ["grouped queries", "wide window", "tiles beside a window", "spectral", "t2r"])
def test_padding_is_not_taken_in(name: str):
    """At the left of the first text and at the right of the second; a text may begin with a chunk of nothing."""
    at = (torch.tensor([0] * 70 + [1] * 9), torch.tensor([*range(70), *range(121, 130)]))
    check(name, 1e-4, 130, absent=at)


@pytest.mark.parametrize(("name", "length"), [("plain", 330), ("tiles", 140)])
def test_parts_follow_one_another(name: str, length: int):
    """And nothing is read that was not written: what is not stands there as NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        check(name, 1e-4, length)
    finally:
        torch.use_deterministic_algorithms(False)


def test_sums_over_rows_are_as_exact_as_their_weights():
    """Where products round these to bfloat16."""
    x, weight = torch.ones(64, 64, dtype=torch.bfloat16, device=DEVICE), torch.rand(64, device=DEVICE)
    found = torch.empty(64, device=DEVICE)
    summed_kernel[(1,)](x, weight, found, 64)
    close(found, weight.double().sum().expand(64), 1e-5)


@pytest.mark.parametrize(("name", "tiles"), [("grouped queries", 1), ("tiles", 3)])
def test_parts_are_counted_by_what_goes_through_them(name: str, tiles: int, monkeypatch: pytest.MonkeyPatch):
    """Of grouped queries by their keys, and a tile of features after another."""
    shape, options = CASES[name]
    counted: list[tuple[int, int]] = []
    monkeypatch.setattr(linear_layout, "spanned", lambda chunks, places, *given: counted.append((chunks, places)) or 1)
    linear.launched(made(shape, options), *text(shape, 70), SCALING, None, None)
    assert counted == [(2, 2 * shape.kv_heads * tiles)]


def test_gradients_lie_as_what_they_are_for():
    """But their numbers of a token of a head lie side by side, as kernels write them."""
    turned = torch.empty(2, 5, 3, 16).transpose(1, 2)
    assert linear_layout.lying_as(turned).stride() == turned.stride()
    over_another = torch.empty(40).as_strided((2, 3, 5, 16), (0, 0, 1, 1))
    assert linear_layout.lying_as(over_another).stride(-1) == 1


def test_parts_are_no_longer_than_there_is_time_for(monkeypatch: pytest.MonkeyPatch):
    """With room for two programs of four warps on each of ten multiprocessors."""
    many = SimpleNamespace(multi_processor_count=10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: many)
    assert linear_layout.PROGRAMS == 2 and linear_layout.FEW == 4
    cases = ((1, 1, 4), (40, 1, 4), (41, 1, 4), (40, 1, 8), (16, 8, 4), (9, 30, 4), (10**6, 1, 4))
    found = [SPANNED(*case, torch.device("cuda")) for case in cases]
    assert found == [1, 2, 3, 4, 8, 9, linear_layout.SPAN]
    assert SPANNED(3, 1, 4, torch.device("cpu")) == 2


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [("plain", 7.0, 1e-3), ("window", 7.0, 1e-3), ("tiles beside a window", 40.0, 2e-2)],
)
def test_large_logits_do_not_overflow(name: str, size: float, tolerance: float):
    """|q·k| up to some 200; and up to some thousands, beside which next to nothing is left of what is far."""
    check(name, tolerance, size=size)


@pytest.mark.parametrize("name", ["plain", "tiles"])
def test_sizes_below_the_least(name: str, monkeypatch: pytest.MonkeyPatch):
    """Divided by what depends on nothing."""

    drawn = made

    def raised(*given: Any) -> Mixer:
        mixer = drawn(*given)
        mixer.map.epsilon = mixer.normaliser.epsilon = 0.1
        return mixer

    monkeypatch.setattr(sys.modules[__name__], "made", raised)
    check(name, 1e-4, 40)


def projected(given: list[Tensor]) -> list[Tensor]:
    """The same numbers as one projection leaves them: all of a token side by side, and other numbers in between."""
    apart = [each.detach().transpose(1, 2).flatten(2) for each in given]
    both = torch.cat([*apart, torch.full_like(apart[0], torch.nan)], -1)
    pieces = both.split([each.shape[-1] for each in apart] + [apart[0].shape[-1]], -1)[: len(given)]
    return [
        piece.unflatten(-1, (each.shape[1], -1)).transpose(1, 2).requires_grad_()
        for piece, each in zip(pieces, given, strict=True)
    ]


@pytest.mark.parametrize("name", ["window", "no power of two", "spectral"])
def test_heads_may_lie_as_projections_leave_them(name: str):
    shape, options = (CASES | OTHERS)[name]
    mixer, given = made(shape, options), tracked(shape, LENGTH)
    found, pieces = [], projected(given)
    assert not any(each.is_contiguous() for each in pieces)
    asked = torch.randn_like(given[0])
    # What comes back may lie as it does here or, from elsewhere, in no pieces at all.
    for inputs, back in (
        (given, asked.mT.contiguous().mT),
        (pieces, asked.transpose(1, 2).contiguous().transpose(1, 2)),
    ):
        out, _ = linear.launched(mixer, *inputs, SCALING, None, None)
        assert out.transpose(1, 2).is_contiguous()
        found.append([out, *torch.autograd.grad(out, [*inputs, *mixer.parameters()], back)])
    assert all(each.transpose(1, 2).is_contiguous() for each in found[1][1:4])
    for mine, other in zip(*found, strict=True):
        close(mine, other.double(), 1e-5)


#: What goes on, and after how many tokens: one, fewer than the window has, and more than a chunk.
GOES_ON = [
    ("grouped queries", 1), ("grouped queries", 70), ("window", 1), ("window", 40), ("window", 70), ("cosformer", 40),
    ("cosformer", 70), ("spectral", 40), ("tiles beside a window", 70),
]  # fmt: skip


@pytest.mark.parametrize(("name", "read"), GOES_ON)
@torch.no_grad()
def test_it_goes_on_from_a_memory(name: str, read: int):
    shape, options = (CASES | OTHERS)[name]
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
    return SimpleNamespace(
        **{"is_cuda": True, "device": None, "dtype": torch.bfloat16, "shape": (1, 2, 9, 16)} | changed
    )


def chosen(mixer: Mixer, given: Any = None, memory: Any = None) -> bool:
    return linear.has_kernels(mixer, given or on_gpu(), given or on_gpu(), memory)


def test_mixers_that_there_are_kernels_for(monkeypatch: pytest.MonkeyPatch):
    with_room(monkeypatch)
    shape = HeadShape(2, 2, 16)
    plain = made(shape, PLAIN)
    assert chosen(plain) and chosen(made(shape, PLAIN | {"window": 4}))
    assert chosen(made(shape, bare("hedgehog", features=16))) and chosen(made(shape, OTHERS["spectral"][1]))
    # What rounding could take below 0, and what has signs.
    products = WAVES | {"map": "stationary", "positive": True, "order": 2}
    for other in (
        products,
        products | {"positive": False},
        bare("cosformer", horizon=9),
        bare("hedgehog", features=130),
    ):
        assert not chosen(made(shape, other))
    for other in ({"decay": "fixed"}, {"features": 300}, {"normaliser": "norm"}):
        assert not chosen(made(shape, PLAIN | other))
    assert not chosen(Mixer(shape, PLAIN, causal=False))
    plain.parts = {"linear"}
    assert not chosen(plain)


def test_texts_that_there_are_kernels_for(monkeypatch: pytest.MonkeyPatch):
    """Gradients do not go back to what was read before; products of float32 are left to PyTorch."""
    plain = made(HeadShape(2, 2, 16), PLAIN)
    with_room(monkeypatch, SHARED - 1)
    assert not chosen(plain)
    with_room(monkeypatch)
    for given in ({"is_cuda": False}, {"shape": (1, 2, 9, 200)}, {"dtype": torch.float64}, {"dtype": torch.float32}):
        assert not chosen(plain, on_gpu(**given))
    torch.set_float32_matmul_precision("medium")
    assert chosen(plain, on_gpu(dtype=torch.float32))
    wide = made(HeadShape(2, 2, 16), PLAIN | {"features": 256})
    assert chosen(wide) and chosen(wide, on_gpu(shape=(1, 2, 9, 128)))
    # No rows of programs, and more than can be launched.
    assert not chosen(plain, on_gpu(shape=(0, 2, 9, 16))) and not chosen(plain, on_gpu(shape=(32768, 2, 9, 16)))
    assert not chosen(plain, None, "memory")
    with torch.no_grad():
        assert chosen(plain, None, "memory")
    for owner, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, lambda: True)
            assert not chosen(plain)
    for name in ("is_compiling", "is_dynamo_compiling"):
        monkeypatch.setattr(torch.compiler, name, lambda: True)
    assert chosen(plain)


@pytest.mark.skipif(DEVICE == "cpu", reason="kernels are chosen on a GPU")
def test_a_mixer_takes_them_on_a_gpu():
    shape, options = CASES["window"]
    mixer, given = made(shape, options), text(shape, 70, dtype=torch.bfloat16)
    expected, found = linear.launched(mixer, *given, SCALING, None, None), mixer(*given, SCALING)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(*pair) for pair in zip(found[1], expected[1], strict=True))


@torch.no_grad()
def test_kernels_that_cannot_be_built_are_told_of_once(monkeypatch: pytest.MonkeyPatch):
    """And PyTorch does it, then and from then on."""

    def broken(*given: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    shape, options = CASES["window"]
    mixer, given = made(shape, options), text(shape, 6)
    expected = mixer(*given, SCALING, path=mixer.ways.chunked)[0]
    monkeypatch.setattr(linear, "launched", broken)
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *given: attempt.possible(attempt.LINEAR))
    monkeypatch.setattr(attempt, "_given_up", set())
    with pytest.warns(UserWarning, match="PyTorch.*Failed to find C compiler"):
        assert torch.equal(mixer(*given, SCALING)[0], expected)
    assert not attempt.possible(attempt.LINEAR) and torch.equal(mixer(*given, SCALING)[0], expected)


@torch.no_grad()
def test_the_ways_are_told(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer, given = made(shape, options).cpu(), [each.cpu() for each in text(shape, 6)]
    monkeypatch.setattr(attempt, "taken", {})
    for _ in range(2):
        mixer(*given, SCALING)
    assert attempt.taken == {"linear attention": ["PyTorch"]}
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *given: True)
    monkeypatch.setattr(mixer_module, "through_kernels", lambda *given: (given[3], None))
    mixer(*given, SCALING)
    assert attempt.taken == {"linear attention": ["PyTorch", "kernels"]}


@torch.no_grad()
def test_what_is_remembered_has_the_strides_that_it_ever_has():
    """Heads come as a projection leaves them; a compiled step looks at strides."""
    shape, options = CASES["window"]
    mixer = made(shape, options)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in text(shape, 80)]
    out, memory = linear.launched(mixer, *turned, SCALING, None, None)
    close(out, linear.launched(mixer, *(each.contiguous() for each in turned), SCALING, None, None)[0].double(), 1e-6)
    assert all(part.is_contiguous() for part in memory)


#: Heads, features, and tokens: of pocket models, of GPT-2 small, of grouped queries, and all that there are tiles of.
MODELS = {
    "pocket": (HeadShape(4, 4, 64), 16, 512),
    "small": (HeadShape(12, 12, 64), 128, 1000),
    "grouped": (HeadShape(8, 2, 128), 64, 700),
    "narrow heads": (HeadShape(4, 4, 32), 32, 300),
    "wide heads": (HeadShape(4, 4, 128), 128, 300),
    "many features": (HeadShape(6, 2, 64), 256, 300),
    "most": (HeadShape(4, 2, 128), 256, 300),
}


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 64])
@pytest.mark.parametrize("name", MODELS)
def test_at_the_sizes_of_a_model(name: str, window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Several times, since what one program reads too early is not always wrong."""
    shape, features, length = MODELS[name]
    options = PLAIN | {"features": features, "frequency_scale": 0.3, "window": window}
    monkeypatch.setitem(CASES, name, (shape, options))
    torch.set_float32_matmul_precision("medium")
    if not window:
        # Parts as they are.
        monkeypatch.setattr(linear_layout, "spanned", SPANNED)
    for _ in range(3):
        # Numbers of float32 are rounded first.
        check(name, 5e-2 if dtype == torch.float32 else 2e-2, length, dtype=dtype)


LARGE: dict[str, dict[str, Any]] = {
    "spectral": WAVES | {"map": "spectral", "amplitude_scale": 0.3, "features": 126, "window": 64},
    "hedgehog": bare("hedgehog", features=128),
    "hedgehog beside a window": bare("hedgehog", features=128, window=64),
}


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("name", LARGE)
def test_other_features_at_the_sizes_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CASES, name, (HeadShape(12, 12, 64), LARGE[name]))
    for _ in range(3):
        check(name, 3e-2, 700, dtype=torch.bfloat16)
