"""One function in three ways: parallel, chunked and recurrent agree, in values and in gradients."""

from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from distill.flexformer.engine import Features, State, chunked, parallel, recurrent, scores
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from .examples import SHAPE, Case, Inputs, draw

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SCALING = SHAPE.head_dim**-0.5
PATHS = {
    "parallel": parallel,
    "chunked": lambda *args: chunked(*args, chunk=4)[0],
    "recurrent": lambda *args: recurrent(*args)[0],
}


def featurise(mixer: Mixer, inputs: Inputs) -> Features:
    """The mixer's features with the extra log-weights on top; padding stays at −∞."""
    features = mixer.features(inputs.query, inputs.key, SCALING, inputs.padding)
    return features._replace(log_weight=features.log_weight + inputs.extra)


@torch.no_grad()
def trusted_rows(mixer: Mixer, features: Features) -> Tensor:
    """Rows whose denominator is not the small rest of a cancellation (B, H, N, 1)."""
    s = scores(features).flatten(1, 2)
    trusted = s.sum(-1, keepdim=True).abs() > 1e-3 * s.abs().sum(-1, keepdim=True)
    return trusted if mixer.map.signed else torch.ones_like(trusted)


def outcomes(mixer: Mixer, inputs: Inputs, path) -> dict[str, Tensor]:
    """The output's trusted rows, and the gradients of a random projection of them."""
    leaves = {name: getattr(inputs, name).clone().requires_grad_() for name in ("query", "key", "value", "extra")}
    features = featurise(mixer, inputs._replace(**leaves))
    out = path(features, leaves["value"]).masked_fill(~trusted_rows(mixer, features), 0.0)
    leaves |= dict(mixer.named_parameters())
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    gradients = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
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
    expected = outcomes(mixer, inputs, parallel)
    assert_same(outcomes(mixer, inputs, lambda *args: chunked(*args, chunk=chunk)[0]), expected)
    assert_same(outcomes(mixer, inputs, lambda *args: recurrent(*args)[0]), expected)


@given(group=st.integers(1, 3), kv_heads=st.integers(1, 3), head_dim=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_any_head_shape(case: Case, group: int, kv_heads: int, head_dim: int, seed: int):
    shape = HeadShape(group * kv_heads, kv_heads, head_dim)
    mixer, inputs = case.mixer(seed, shape), draw(seed, 7, shape=shape)
    features = featurise(mixer, inputs)
    trusted = trusted_rows(mixer, features)
    expected = parallel(features, inputs.value) * trusted
    assert expected.shape == (2, shape.heads, 7, head_dim)
    torch.testing.assert_close(chunked(features, inputs.value, chunk=3)[0] * trusted, expected, **TIGHT)
    torch.testing.assert_close(recurrent(features, inputs.value)[0] * trusted, expected, **TIGHT)


def test_longer_than_a_chunk(case: Case):
    """The default chunk, twice and a bit."""
    mixer, inputs = case.mixer(), draw(0, 131)
    inputs = inputs._replace(extra=inputs.extra * 0.01)
    expected = outcomes(mixer, inputs, parallel)
    assert_same(outcomes(mixer, inputs, lambda *args: chunked(*args)[0]), expected)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_later_tokens_change_nothing_earlier(case: Case, path):
    mixer, inputs = case.mixer(seed=6), draw(6, 11)
    before = path(featurise(mixer, inputs), inputs.value)
    later = inputs._replace(**{name: getattr(inputs, name).clone() for name in ("query", "key", "value", "extra")})
    for changed in (later.query, later.key, later.value):
        changed[:, :, 7:] += 1.0
    # A running maximum that looked ahead would rescale everything before it to zero.
    later.extra[..., 7:] += 2000.0
    after = path(featurise(mixer, later), later.value)
    torch.testing.assert_close(after[:, :, :7], before[:, :, :7], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(after[1, :, 7], before[1, :, 7]).all()


@pytest.mark.parametrize("path", [partial(chunked, chunk=3), recurrent], ids=["chunked", "recurrent"])
def test_going_on_from_a_state(case: Case, path):
    """Split anywhere, even inside the padding: two parts equal the whole, in output, state and gradients."""
    mixer, inputs = case.mixer(seed=7), draw(7, 9)
    leaves = [inputs.query.requires_grad_(), inputs.key.requires_grad_(), *mixer.parameters()]
    features = featurise(mixer, inputs)
    trusted = trusted_rows(mixer, features)
    whole, end = chunked(features, inputs.value)
    whole_gradients = torch.autograd.grad((whole * trusted).square().sum(), leaves, retain_graph=True)
    for split in range(1, 9):
        first = Features(*(part[:, :, :split] for part in features[:3]), features.epsilon)
        second = Features(*(part[:, :, split:] for part in features[:3]), features.epsilon)
        head, state = path(first, inputs.value[:, :, :split])
        tail, last = path(second, inputs.value[:, :, split:], state)
        out = torch.cat([head, tail], 2)
        torch.testing.assert_close(out * trusted, whole * trusted, **TIGHT)
        torch.testing.assert_close(last.sums, end.sums, **TIGHT)
        assert torch.equal(last.maximum, end.maximum)
    gradients = torch.autograd.grad((out * trusted).square().sum(), leaves, retain_graph=True)
    for found, expected in zip(gradients, whole_gradients, strict=True):
        size = expected.abs().max().clamp(min=1.0)
        torch.testing.assert_close(found / size, expected / size, **TIGHT)


def test_mixer_in_pieces(case: Case):
    """As decoding does: a prompt, several tokens onto its state, then single ones."""
    mixer, inputs = case.mixer(seed=8), draw(8, 12)
    whole, end = mixer(inputs.query, inputs.key, inputs.value, SCALING, inputs.padding)
    trusted = trusted_rows(mixer, mixer.features(inputs.query, inputs.key, SCALING, inputs.padding))
    state, outputs = None, []
    for piece in (slice(0, 3), slice(3, 7), *(slice(i, i + 1) for i in range(7, 12))):
        q, k, v = (x[:, :, piece] for x in inputs[:3])
        out, state = mixer(q, k, v, SCALING, inputs.padding[:, piece], state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 2) * trusted, whole * trusted, **TIGHT)
    torch.testing.assert_close(state.sums, end.sums, **TIGHT)


def test_state_size_is_independent_of_length(case: Case):
    mixer = case.mixer()
    one, many = (mixer(*draw(0, length)[:3], SCALING)[1] for length in (1, 70))
    assert isinstance(one, State)
    assert one.sums.shape == many.sums.shape == (2, SHAPE.kv_heads, mixer.map.feature_dim, SHAPE.head_dim + 1)
    assert one.maximum.shape == many.maximum.shape == (2, SHAPE.kv_heads)
