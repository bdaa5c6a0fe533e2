"""The streamed map loss, run by Triton's interpreter, against the dense one in float64: values and gradients."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flexformer.interpreted import DEVICE, close, made, text, with_room
from torch import Tensor

from distill import map_stream, maploss
from distill.capture import Heads
from distill.flexformer import attempt
from distill.flexformer.attempt import SHARED
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer
from distill.map_stream import stream_kl
from distill.maploss import layer_kl, log_student, log_teacher, row_kl
from distill.mixer import bare

PLAIN = bare("exponential", features=16, frequency_scale=1.0, key_weight="quadratic")
#: Heads, key-value heads, head_dim, and what the mixer is.
CASES: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "plain": (HeadShape(2, 2, 16), PLAIN),
    "grouped queries": (HeadShape(4, 2, 16), PLAIN),
    "no power of two": (HeadShape(1, 1, 10), PLAIN | {"features": 70, "key_weight": "none"}),
    "window": (HeadShape(2, 1, 16), PLAIN | {"window": 5}),
    "many features": (HeadShape(1, 1, 16), PLAIN | {"features": 150, "window": 3}),
}
WAVES = bare("", features=27, frequency_scale=0.15, key_weight="quadratic")
#: Others than exponential features, which PyTorch makes.
OTHERS: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "spectral": (HeadShape(2, 1, 16), WAVES | {"map": "spectral", "amplitude_scale": 0.3, "window": 5}),
    "products": (HeadShape(2, 2, 16), WAVES | {"map": "nonstationary", "positive": True, "order": 3}),
    "tied products": (HeadShape(1, 1, 16), WAVES | {"map": "stationary", "positive": True, "order": 2, "window": 3}),
    "hedgehog": (HeadShape(2, 1, 16), bare("hedgehog", features=32)),
}
SCALING = 0.25


def heads(shape: HeadShape, length: int, size: float = 1.0, texts: int = 2) -> Heads:
    return Heads(torch.nn.Identity(), *text(shape, length, size, texts=texts), SCALING)


def wide(given: Heads) -> Heads:
    return given._replace(query=given.query.double(), key=given.key.double(), value=given.value.double())


def dense(mixer: Mixer, given: Heads, rows: Tensor) -> Tensor:
    return row_kl(log_teacher_exactly(given, rows), log_student(mixer, given, rows))


def log_teacher_exactly(given: Heads, rows: Tensor) -> Tensor:
    """As `log_teacher`, which is float32: that of both texts in float64."""
    query = given.query[:, :, rows].unflatten(1, (given.key.shape[1], -1))
    unseen = log_teacher(given, rows) == -torch.inf
    logits = query @ given.key[:, :, None].mT * given.scaling
    return logits.masked_fill(unseen, -torch.inf).log_softmax(-1)


def check(name: str, rows: Tensor, precision: str, tolerance: float, causal: bool = True, **changed: Any) -> None:
    shape, options = (CASES | OTHERS)[name]
    # Two take the interpreter twice as long, and are for what may differ in them.
    texts = 1 if changed.get("padding") is None and DEVICE == "cpu" else 2
    mixer, given = made(shape, options), heads(shape, changed.pop("length", 80), changed.pop("size", 1.0), texts)
    given, mixer.causal = given._replace(causal=causal, **changed), causal
    exact, rows = deepcopy(mixer).double(), rows.to(DEVICE)
    torch.set_float32_matmul_precision(precision)
    found = stream_kl(mixer, given, rows)
    expected = dense(exact, wide(given), rows)
    real = torch.ones_like(expected, dtype=torch.bool)
    if given.padding is not None:
        real = (given.padding[:, rows] != 0)[:, None, None].expand_as(expected)
    assert found.shape == expected.shape and found.isfinite().all()
    close(found[real], expected[real], tolerance)
    weights = torch.rand_like(expected) * real
    expected = torch.where(real, expected, 0)
    ours = torch.autograd.grad((found.double() * weights).sum(), list(mixer.parameters()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(exact.parameters()))
    for mine, right in zip(ours, theirs, strict=True):
        close(mine, right, tolerance)


#: By how products are made; "high" is exact in the interpreter, and not on a GPU.
TOLERANCES = {"highest": 1e-4, "high": 4e-3, "medium": 1e-2}


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["plain", "grouped queries", "no power of two", "window"])
def test_it_is_the_dense_loss(name: str, precision: str):
    check(name, torch.arange(80), precision, TOLERANCES[precision])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_it_is_the_dense_loss_of_many_features(precision: str):
    check("many features", torch.arange(80), precision, TOLERANCES[precision])


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_the_dense_loss_of_other_features(name: str):
    """Precise whatever PyTorch is told, since rounding takes the sign of a sum of waves; but that makes features so."""
    check(name, torch.arange(150), "medium", 1e-4 if DEVICE == "cpu" else 1e-3, length=150)


@pytest.mark.parametrize("name", ["spectral", "hedgehog"])
def test_some_queries_of_a_padded_text_by_other_features(name: str):
    padding = torch.ones(2, 150, dtype=torch.long, device=DEVICE)
    padding[0, :40] = padding[1, 131:] = 0
    check(name, torch.arange(41, 150, 2), "highest", 1e-4, length=150, padding=padding)


@pytest.mark.parametrize("name", ["grouped queries", "window"])
@pytest.mark.parametrize("padded", [False, True])
def test_tiles_that_every_row_sees_whole(name: str, padded: bool):
    """And rows that are chosen, a tile and more of them."""
    padding = torch.ones(2, 200, dtype=torch.long, device=DEVICE)
    padding[0, :70] = padding[1, 171:] = 0
    # The first of some is just before it sees a tile whole.
    first = 62 + CASES[name][1]["window"]
    for rows in (torch.arange(71 if padded else first, 200, 2), torch.arange(70 if padded else 0, 200)):
        check(name, rows, "highest", 1e-4, length=200, padding=padding if padded else None)


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("window", [0, 64])
def test_at_the_sizes_of_a_model(window: int, precision: str, monkeypatch: pytest.MonkeyPatch):
    """Several times, since what one program reads too early is not always wrong."""
    options = PLAIN | {"features": 128, "frequency_scale": 0.3, "window": window}
    monkeypatch.setitem(CASES, "model", (HeadShape(12, 12, 64), options))
    for _ in range(3):
        check("model", torch.arange(1000), precision, TOLERANCES[precision], length=1000)


@pytest.mark.skipif(DEVICE == "cpu", reason="so large a layer takes a GPU")
@pytest.mark.parametrize("name", OTHERS)
def test_other_features_at_the_sizes_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch):
    options = OTHERS[name][1]
    sizes = {"features": 108, "window": 64 * (options["window"] > 0)}
    monkeypatch.setitem(OTHERS, name, (HeadShape(12, 12, 64), options | sizes))
    check(name, torch.arange(700), "medium", 1e-3, length=700)


@pytest.mark.parametrize("name", ["grouped queries", "window"])
def test_chosen_queries(name: str):
    check(name, torch.tensor([0, 3, 4, 17, 63, 64, 79]), "highest", 1e-4)


@pytest.mark.parametrize(("name", "causal"), [("grouped queries", True), ("grouped queries", False), ("window", True)])
def test_padding_is_neither_attended_to_nor_compared(name: str, causal: bool):
    padding = torch.ones(2, 80, dtype=torch.long, device=DEVICE)
    padding[0, 70:] = padding[1, 31:] = 0
    check(name, torch.arange(80), "highest", 1e-4, causal, padding=padding)


def test_a_query_that_sees_nothing_has_no_loss():
    shape, options = CASES["window"]
    padding = torch.ones(2, 80, dtype=torch.long, device=DEVICE)
    padding[:, :70] = 0
    mixer, given = made(shape, options), heads(shape, 80)._replace(padding=padding)
    kl = stream_kl(mixer, given, torch.arange(80, device=DEVICE))
    assert (kl[..., :70] == 0).all() and (kl[..., 71:] != 0).any()
    assert all(each.isfinite().all() for each in torch.autograd.grad(kl.sum(), list(mixer.parameters())))


def test_a_block_of_keys_whose_first_is_seen_by_the_last_query_alone():
    """64 of 64 + 5, beyond a window of 5."""
    check("window", torch.arange(70), "highest", 1e-4, length=70)


def on_a_gpu(given: Heads, **changed: Any) -> Any:
    """What is looked at to choose: queries that say they were there."""
    told = {"is_cuda": True, "device": None, "dtype": torch.float32, "shape": given.query.shape, "requires_grad": False}
    return SimpleNamespace(query=SimpleNamespace(**told | changed), key=SimpleNamespace(requires_grad=False))


NONE_FOR: dict[str, tuple[HeadShape, dict[str, Any]]] = {
    "signs": (HeadShape(2, 2, 16), WAVES | {"map": "stationary", "positive": False, "order": 1}),
    "decay": (HeadShape(2, 2, 16), PLAIN | {"decay": "fixed"}),
    "many factors": (HeadShape(2, 2, 16), WAVES | {"map": "stationary", "positive": True, "order": 4, "features": 81}),
    "erasing": (HeadShape(2, 2, 16), PLAIN | {"decay": "delta", "key_weight": "none"}),
    "norm": (HeadShape(2, 2, 16), PLAIN | {"normaliser": "norm"}),
    "many features of float32": (HeadShape(1, 1, 64), bare("hedgehog", features=130)),
    "head_dim": (HeadShape(1, 1, 256), PLAIN),
}


@pytest.mark.parametrize("name", NONE_FOR)
def test_mixers_that_there_are_no_kernels_for(name: str, monkeypatch: pytest.MonkeyPatch):
    with_room(monkeypatch)
    for shape, options in (CASES["window"], OTHERS["spectral"], OTHERS["products"]):
        assert map_stream.streams(made(shape, options), on_a_gpu(heads(shape, 4)))
    shape, options = NONE_FOR[name]
    assert not map_stream.streams(made(shape, options), on_a_gpu(heads(shape, 4)))


def test_texts_that_there_are_no_kernels_for(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer, given = made(shape, options), heads(shape, 4)
    with_room(monkeypatch, SHARED - 1)
    assert not map_stream.streams(mixer, on_a_gpu(given))
    with_room(monkeypatch)
    for changed in ({"is_cuda": False}, {"dtype": torch.float64}, {"requires_grad": True}):
        assert not map_stream.streams(mixer, on_a_gpu(given, **changed))
    mixer.parts = {"linear"}
    assert not map_stream.streams(mixer, on_a_gpu(given))


def test_maps_are_streamed_where_there_are_kernels(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer, given = made(shape, options), heads(shape, 12)
    streamed: list[int] = []

    def stream(*parts: Any) -> Tensor:
        streamed.append(1)
        return stream_kl(*parts)

    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(map_stream, "stream_kl", stream)
    rows = torch.tensor([2, 7, 11], device=given.query.device)
    monkeypatch.setattr(maploss, "streams", lambda *given: False)
    expected = layer_kl(mixer, given, rows)
    assert not streamed
    monkeypatch.setattr(maploss, "streams", lambda *given: True)
    torch.testing.assert_close(layer_kl(mixer, given, rows), expected)
    assert streamed


def test_kernels_that_cannot_be_built_are_told_of_once(monkeypatch: pytest.MonkeyPatch):
    """And PyTorch does it, then and from then on."""
    shape, options = CASES["window"]
    mixer, given = made(shape, options), heads(shape, 12)
    expected = layer_kl(mixer, given)

    def broken(*parts: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(map_stream, "stream_kl", broken)
    monkeypatch.setattr(attempt, "_given_up", set())
    monkeypatch.setattr(maploss, "streams", lambda mixer, heads: attempt.possible(map_stream.WHAT))
    with pytest.warns(UserWarning, match="PyTorch.*Failed to find C compiler"):
        torch.testing.assert_close(layer_kl(mixer, given), expected)
    torch.testing.assert_close(layer_kl(mixer, given), expected)


def test_both_directions():
    check("plain", torch.arange(80), "highest", 1e-4, causal=False)


@pytest.mark.parametrize("name", ["plain", "window"])
def test_extreme_logits(name: str):
    """|q·k| up to some 200."""
    check(name, torch.arange(80), "highest", 1e-3, size=7.0)


def test_one_token_attends_to_itself():
    shape, options = CASES["plain"]
    mixer, given = made(shape, options), heads(shape, 1)
    kl = stream_kl(mixer, given, torch.zeros(1, dtype=torch.long, device=DEVICE))
    assert kl.abs().max() < 1e-6
    assert all(each.abs().max() < 1e-6 for each in torch.autograd.grad(kl.sum(), list(mixer.parameters())))
