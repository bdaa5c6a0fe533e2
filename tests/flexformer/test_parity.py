"""One function in three ways: parallel, chunked and recurrent agree, in values and in gradients."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from .examples import Case, Inputs, draw
from .paths import PATHS, TIGHT, in_chunks_of, run, trusted_rows


def outcomes(mixer: Mixer, inputs: Inputs, path) -> dict[str, Tensor]:
    """The output's trusted rows, and the gradients of a random projection of them."""
    leaves = {name: getattr(inputs, name).clone().requires_grad_() for name in ("query", "key", "value", "extra")}
    trusted = trusted_rows(mixer, inputs)
    out = run(mixer, inputs._replace(**leaves), path)[0].masked_fill(~trusted, 0.0)
    leaves |= dict(mixer.named_parameters())
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    # A window wider than the text leaves the linear part without keys.
    gradients = torch.autograd.grad((out * probe).sum(), list(leaves.values()), materialize_grads=True)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        # Gradients of many terms are summed: rounding is relative to the largest.
        size = value.abs().max().clamp(min=1.0)
        torch.testing.assert_close(found[name] / size, value / size, **TIGHT, msg=lambda m, name=name: f"{name}: {m}")


@given(
    length=st.integers(1, 21),
    chunk=st.integers(1, 9),
    batch=st.integers(1, 3),
    # Of the extra weights: at 1 a single key takes all, near 0 they all matter.
    spread=st.sampled_from([1.0, 0.01]),
    seed=st.integers(0, 10**6),
)
@example(length=1, chunk=4, batch=1, spread=1.0, seed=0)
@example(length=13, chunk=5, batch=3, spread=0.01, seed=0)
def test_three_paths_agree(case: Case, length: int, chunk: int, batch: int, spread: float, seed: int):
    mixer, inputs = case.mixer(seed), draw(seed, length, batch)
    inputs = inputs._replace(extra=inputs.extra * spread)
    expected = outcomes(mixer, inputs, mixer.ways.parallel)
    assert_same(outcomes(mixer, inputs, in_chunks_of(mixer, chunk)), expected)
    assert_same(outcomes(mixer, inputs, mixer.ways.recurrent), expected)


@given(group=st.integers(1, 3), kv_heads=st.integers(1, 3), size=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_any_head_shape(case: Case, group: int, kv_heads: int, size: int, seed: int):
    # As many atoms as dimensions, for some maps: the groups of the decay have to divide them.
    head_dim = size * case.options["decay_groups"]
    shape = HeadShape(group * kv_heads, kv_heads, head_dim)
    mixer, inputs = case.mixer(seed, shape), draw(seed, 7, shape=shape)
    trusted = trusted_rows(mixer, inputs)
    expected = run(mixer, inputs, mixer.ways.parallel)[0] * trusted
    assert expected.shape == (2, shape.heads, 7, head_dim)
    for path in (in_chunks_of(mixer, 3), mixer.ways.recurrent):
        torch.testing.assert_close(run(mixer, inputs, path)[0] * trusted, expected, **TIGHT)


def test_longer_than_a_chunk(case: Case):
    """The default chunk, and the window's block, twice and a bit."""
    mixer, inputs = case.mixer(), draw(0, 131)
    inputs = inputs._replace(extra=inputs.extra * 0.01)
    assert_same(outcomes(mixer, inputs, mixer.ways.chunked), outcomes(mixer, inputs, mixer.ways.parallel))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_later_tokens_change_nothing_earlier(case: Case, path):
    mixer, inputs = case.mixer(seed=6), draw(6, 11)
    before, _ = run(mixer, inputs, path(mixer))
    later = inputs._replace(**{name: getattr(inputs, name).clone() for name in ("query", "key", "value", "extra")})
    for changed in (later.query, later.key, later.value):
        changed[:, :, 7:] += 1.0
    # A running maximum that looked ahead would rescale everything before it to zero.
    later.extra[..., 7:] += 2000.0
    after, _ = run(mixer, later, path(mixer))
    torch.testing.assert_close(after[:, :, :7], before[:, :, :7], rtol=1e-12, atol=1e-12)
    if case.options["map"] != "zero" or case.options["window"]:
        assert not torch.isclose(after[1, :, 7:], before[1, :, 7:]).all()


def test_the_way_is_chosen_by_what_comes(case: Case):
    """Whole texts in chunks; one token onto a memory by the recurrence: both to the last bit."""
    mixer, inputs = case.mixer(seed=5), draw(5, 9)
    q, k, v, _, padding = inputs
    out, memory = mixer(q, k, v, 0.5, padding)
    assert torch.equal(out, mixer(q, k, v, 0.5, padding, path=mixer.ways.chunked)[0])
    token = (q[:, :, :1], k[:, :, :1], v[:, :, :1], 0.5, None, memory)
    assert torch.equal(mixer(*token)[0], mixer(*token, path=mixer.ways.recurrent)[0])
