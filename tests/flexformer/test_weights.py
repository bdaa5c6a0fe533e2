"""The maps that losses compare are those that the output is made of."""

import pytest
import torch

from distill.flexformer.engine import future
from distill.flexformer.mixer import Mixer

from .examples import CASES, SHAPE, Case, draw
from .paths import TIGHT, trusted_rows

AVERAGING = [case for case in CASES if case.mixer().averages]
COMPARABLE = [case for case in AVERAGING if case.mixer().comparable]

#: A window of 3 tokens is wider than the first two texts.
lengths = pytest.mark.parametrize("length", [1, 2, 3, 12])


def through(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Σ_j A_ij v_j: (B, K, G, N, N) and (B, K, N, D) → (B, H, N, D)."""
    return (weights @ value[:, :, None]).flatten(1, 2)


@lengths
@pytest.mark.parametrize("case", COMPARABLE, ids=lambda case: case.name)
def test_log_weights_are_those_of_the_output(case: Case, length: int):
    mixer, (q, k, v, *_) = case.mixer(seed=18), draw(18, length)
    logs = mixer.log_weights(q, k, 0.5)
    assert (logs[..., future(length, logs.device)] == -torch.inf).all()
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones_like(logs[..., 0]), **TIGHT)
    torch.testing.assert_close(through(logs.exp(), v), mixer(q, k, v, 0.5)[0], **TIGHT)


@pytest.mark.parametrize("case", COMPARABLE, ids=lambda case: case.name)
def test_log_weights_of_chosen_queries_are_those_rows(case: Case):
    mixer, (q, k, *_), rows = case.mixer(seed=19), draw(19, 12), torch.tensor([11, 0, 5, 2])
    torch.testing.assert_close(mixer.log_weights(q, k, 0.5, rows), mixer.log_weights(q, k, 0.5)[..., rows, :], **TIGHT)


@lengths
@pytest.mark.parametrize("case", AVERAGING, ids=lambda case: case.name)
def test_scores_are_those_of_the_output(case: Case, length: int):
    """Up to a factor above 0: signs, and the part of what cancels, are the same."""
    mixer, inputs = case.mixer(seed=20), draw(20, length)
    q, k, v = inputs[:3]
    scores = mixer.scores(q, k, 0.5)
    assert not scores.triu(1).any()
    plain = inputs._replace(extra=inputs.extra * 0, padding=torch.ones_like(inputs.padding))
    trusted = trusted_rows(mixer, plain)
    sums = scores.sum(-1, keepdim=True)
    trusted &= ((sums.abs() >= mixer.map.epsilon) | (sums == 0)).view_as(trusted)
    sums = sums.masked_fill(sums == 0, 1.0)
    torch.testing.assert_close(through(scores / sums, v) * trusted, mixer(q, k, v, 0.5)[0] * trusted, **TIGHT)


@pytest.mark.parametrize("case", AVERAGING, ids=lambda case: case.name)
def test_padding_has_no_weight_and_moves_nothing(case: Case):
    """Weights among the real tokens of a text are those of the text without its padding; scores up to a factor."""
    mixer, (q, k, *_, mask) = case.mixer(seed=22), draw(22, 12)
    for b, real in enumerate(mask != 0):
        alone = [x[b : b + 1, :, real] for x in (q, k)]
        rows = [mixer.scores(q, k, 0.5, mask)[b : b + 1], mixer.scores(*alone, 0.5)]
        if case in COMPARABLE:
            rows = [mixer.log_weights(q, k, 0.5, None, mask)[b : b + 1], mixer.log_weights(*alone, 0.5)]
            assert (rows[0][..., real, :][..., ~real] == -torch.inf).all()
        else:
            assert not rows[0][..., real, :][..., ~real].any()
            rows = [row / row.abs().amax(-1, keepdim=True).clamp(min=1e-30) for row in rows]
        torch.testing.assert_close(rows[0][..., real, :][..., real], rows[1], **TIGHT)


@pytest.mark.parametrize("case", COMPARABLE, ids=lambda case: case.name)
def test_gradients_of_the_weights_are_those_of_the_output(case: Case):
    mixer, (q, k, v, *_) = case.mixer(seed=21), draw(21, 8)
    leaves = [q.requires_grad_(), k.requires_grad_(), *mixer.parameters()]
    outs = mixer(q, k, v, 0.5)[0], through(mixer.log_weights(q, k, 0.5).exp(), v), through(normalised(mixer, q, k), v)
    if case.options["map"] == "constant" and case.options["key_weight"] == "none":
        assert not any(out.requires_grad for out in outs)
        return
    first, *others = (torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True) for out in outs)
    for other in others:
        for found, expected in zip(other, first, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def normalised(mixer: Mixer, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    scores = mixer.scores(q, k, 0.5)
    return scores / scores.sum(-1, keepdim=True)


def test_shapes():
    mixer, (q, k, *_) = COMPARABLE[0].mixer(), draw(0, 7)
    shape = (2, SHAPE.kv_heads, SHAPE.group)
    assert mixer.log_weights(q, k, 0.5, torch.tensor([3, 1])).shape == (*shape, 2, 7)
    assert mixer.log_weights(q, k, 0.5).shape == mixer.scores(q, k, 0.5).shape == (*shape, 7, 7)
