"""The controls: no attention, attention that ignores the query, and one part of a mixer without the other."""

import pytest
import torch

from distill.flexformer.mixer import Mixer

from .examples import CASES, PLAIN, SHAPE, Case, draw, randomise
from .paths import PATHS, TIGHT, trusted_rows
from .test_window import banded

#: Those with a window and something beside it.
BOTH = [case for case in CASES if case.options["window"] and case.options["map"] != "zero"]
#: And with weights that can be shown.
WEIGHING = [case for case in BOTH if case.options["decay"] != "delta"]

by_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
both, weighing = (pytest.mark.parametrize("case", some, ids=lambda case: case.name) for some in (BOTH, WEIGHING))


def build(**options) -> Mixer:
    return randomise(Mixer(SHAPE, PLAIN | options).double())


@by_path
@pytest.mark.parametrize("normaliser", ["sum", "norm"])
def test_zero_gives_nought(path, normaliser: str):
    mixer, (q, k, v, *_) = build(map="zero", key_weight="quadratic", normaliser=normaliser), draw(0, 9)
    assert not mixer(q, k, v, 0.5, path=path(mixer))[0].any()


@by_path
def test_uniform_is_the_running_mean(path):
    mixer, (q, k, v, *_) = build(map="constant"), draw(0, 9)
    expected = v.cumsum(2) / torch.arange(1, 10)[:, None]
    torch.testing.assert_close(
        mixer(q, k, v, 0.5, path=path(mixer))[0], expected.repeat_interleave(SHAPE.group, 1), **TIGHT
    )
    assert not list(mixer.parameters())


@by_path
def test_key_weight_alone_is_a_softmax_that_ignores_the_query(path):
    mixer, (q, k, v, *_) = build(map="constant", key_weight="quadratic"), draw(0, 9)
    out, _ = mixer(q, k, v, 0.5, path=path(mixer))
    assert torch.equal(out, mixer(torch.randn_like(q), k, v, 0.5, path=path(mixer))[0])
    u, c = (each[:, None] for each in mixer.key_weight.coefficients)
    scaled = k * 0.5**0.5
    logits = (u * scaled + c * scaled**2).sum(-1)
    for i in range(9):
        expected = (logits[..., : i + 1].softmax(-1)[..., None] * v[:, :, : i + 1]).sum(2)
        torch.testing.assert_close(out[:, :, i], expected.repeat_interleave(SHAPE.group, 1), **TIGHT)


@both
@by_path
def test_without_the_linear_part_the_window_is_left(case: Case, path):
    mixer, inputs = case.mixer(), draw(1, 12)
    mixer.parts = {"window"}
    out, _ = mixer(*inputs[:3], 0.5, inputs.padding, path=path(mixer))
    expected = banded(inputs, mixer.width)
    if mixer.normaliser.averages:
        torch.testing.assert_close(out, expected, **TIGHT)
    else:
        # The norm cares for directions alone, but for its ε.
        along = torch.nn.functional.cosine_similarity(out / mixer.normaliser.gain[:, None], expected, dim=-1)
        assert (along[expected.any(-1)] > 1 - 1e-9).all()


@weighing
@by_path
def test_without_the_window_the_linear_part_is_left(case: Case, path):
    """What is beyond the window keeps its relative weights; rows that have nothing there give 0."""
    mixer, inputs = case.mixer(), draw(2, 12)
    inputs = inputs._replace(padding=torch.ones_like(inputs.padding), extra=inputs.extra * 0)
    q, k, v, *_ = inputs
    weights = mixer.scores(q, k, 0.5).tril(-mixer.width)
    mixer.parts = {"linear"}
    out, _ = mixer(q, k, v, 0.5, path=path(mixer))
    trusted = trusted_rows(mixer, inputs)
    assert not out[:, :, : mixer.width].any()
    y = (weights @ v[:, :, None]).flatten(1, 2)
    if mixer.normaliser.averages:
        z = weights.sum(-1, keepdim=True).flatten(1, 2)
        torch.testing.assert_close(out * trusted, y / z.masked_fill(z == 0, 1.0) * trusted, rtol=1e-8, atol=1e-8)
    else:
        along = torch.nn.functional.cosine_similarity(out / mixer.normaliser.gain[:, None], y, dim=-1)
        assert (along[trusted.squeeze(-1) & y.any(-1)] > 1 - 1e-9).all()


@weighing
def test_maps_leave_out_what_outputs_do(case: Case):
    """The weights that losses compare follow `parts`, too."""
    mixer, (q, k, *_) = case.mixer(), draw(3, 12)
    whole = mixer.scores(q, k, 0.5)
    for parts, kept in (({"window"}, whole.triu(1 - mixer.width)), ({"linear"}, whole.tril(-mixer.width))):
        mixer.parts = parts
        found = mixer.scores(q, k, 0.5)
        size = kept.abs().amax(-1, keepdim=True) / found.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(found * size, kept, rtol=1e-9, atol=1e-12)
