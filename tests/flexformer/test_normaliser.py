"""What turns weighted sums into the output."""

import pytest
import torch

from distill.flexformer.mixer import Mixer
from distill.flexformer.normaliser import RootMeanSquare, RowSum, build_normaliser

from .examples import PLAIN, SHAPE, draw, randomise

NORM = PLAIN | {"map": "identity", "normaliser": "norm"}


def test_denominator_rule():
    """z itself from ε on, ±ε below it, and 0 / ε where there is nothing."""
    z = torch.tensor([2.0, -2.0, 0.1, -0.1, 0.05, -0.05, 0.0], dtype=torch.float64)
    numerator = torch.tensor([1, 1, 1, 1, 1, 1, 0], dtype=torch.float64)
    out = RowSum(SHAPE, 0.1)(torch.stack([numerator, z], -1)).flatten()
    torch.testing.assert_close(out, torch.tensor([0.5, -0.5, 10, -10, 10, -10, 0], dtype=torch.float64))


def test_root_mean_square():
    """g y / √(mean(y²) + 10⁻⁶), head by head; the sum of the weights plays no part."""
    norm = randomise(RootMeanSquare(SHAPE, 1e-3).double())
    for size in (1.0, 1e-3, 1e-6):
        y = size * torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
        sums = torch.cat([y, torch.tensor([777.0], dtype=torch.float64)]).expand(2, SHAPE.heads, 3, 5)
        mean_square = (1 + 4 + 9 + 0.25) / 4 * size**2
        expected = norm.gain * y / (mean_square + 1e-6) ** 0.5
        torch.testing.assert_close(norm(sums)[1, :, 2], expected, rtol=1e-12, atol=1e-15)
    assert not norm(torch.zeros(1, SHAPE.heads, 1, 5)).any()


def test_the_norm_starts_without_a_gain():
    assert (Mixer(SHAPE, NORM).normaliser.gain == 1).all()


def test_only_sums_average():
    shapes = {form: build_normaliser(SHAPE, form, 1e-3).averages for form in ("sum", "norm")}
    assert shapes == {"sum": True, "norm": False}


@pytest.mark.parametrize(
    ("change", "comparable"),
    [({"map": "elu"}, True), ({"map": "elu", "normaliser": "norm"}, False), ({"map": "identity"}, False)],
)
def test_comparable_are_positive_weights_that_sum_to_one(change: dict, comparable: bool):
    assert Mixer(SHAPE, PLAIN | change).comparable == comparable


def test_the_size_of_the_values_hardly_matters_to_the_norm():
    mixer, (q, k, v, *_) = Mixer(SHAPE, NORM).double(), draw(0, 9)
    small, large = (mixer(q, k, size * v, 0.5)[0] for size in (1.0, 1e6))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)
    assert not torch.equal(small, large)
