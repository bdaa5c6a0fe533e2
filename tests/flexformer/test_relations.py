"""What the docstrings say of one map in terms of another."""

import pytest
import torch

from distill.flexformer.options import MAPS

from .examples import EXAMPLES, SHAPE, draw, randomise
from .test_kernel import kernel_matrix

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def build(name: str, **options):
    torch.manual_seed(0)
    return randomise(MAPS[name](SHAPE, **options).double())


def kernels(*maps):
    inputs = draw(0, 6)
    return (kernel_matrix(feature_map, inputs.query, inputs.key) for feature_map in maps)


@torch.no_grad()
def per_query_head(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.repeat_interleave(SHAPE.group, 0)


def test_signed_nonstationary_tied_is_stationary():
    (options, _), *_ = EXAMPLES["stationary"]
    one, two = build("stationary", **options), build("nonstationary", **options)
    for parameter in (two.frequency, two.partner):
        parameter.data.copy_(one.frequency)
    torch.testing.assert_close(*kernels(one, two), **EXACT)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_positive_nonstationary_tied_is_stationary(order: int):
    options = {"features": 2 * 3**order, "frequency_scale": 1.0, "positive": True, "order": order}
    one, two = build("stationary", **options), build("nonstationary", **options)
    two.load_state_dict(one.state_dict(), strict=False)
    two.query_frequency.data.copy_(per_query_head(one.key_frequency))
    two.phase.data.zero_()
    torch.testing.assert_close(*kernels(one, two), **EXACT)


@pytest.mark.parametrize("positive", [False, True])
def test_stationary_depends_on_the_difference_alone(positive: bool):
    stationary, other = (
        build(name, features=18, frequency_scale=1.0, positive=positive, order=2) for name in EXAMPLES if "ary" in name
    )
    inputs, shift = draw(0, 6), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    pairs = ([kernel_matrix(m, inputs.query + s, inputs.key + s) for s in (0.0, shift)] for m in (stationary, other))
    torch.testing.assert_close(*next(pairs), **EXACT)
    assert not torch.isclose(*next(pairs)).any()


def spectral_and(name: str, **options):
    return build("spectral", features=12, frequency_scale=1.0, amplitude_scale=1.0), build(name, **options)


def test_spectral_without_waves_is_exponential():
    spectral, exponential = spectral_and("exponential", features=4, frequency_scale=1.0)
    spectral.raw_depth.data.fill_(-torch.inf)
    spectral.query_frequency.data[:, :4] = exponential.query_frequency
    spectral.key_frequency.data[:, :4] = exponential.key_frequency
    spectral.query_bias.data[:, :4] = exponential.query_bias
    spectral.key_bias.data.copy_(exponential.key_bias)
    torch.testing.assert_close(*kernels(spectral, exponential), **EXACT)


def test_spectral_with_constant_amplitudes_is_a_product_of_order_one():
    """Up to the constant 1/M, which cancels in the normalisation."""
    options = {"features": 12, "frequency_scale": 1.0, "positive": True, "order": 1}
    spectral, product = spectral_and("nonstationary", **options)
    for parameter in (spectral.query_frequency, spectral.key_frequency, spectral.query_bias):
        parameter.data[:, :4] = 0.0
    spectral.key_bias.data.zero_()
    spectral.query_frequency.data[:, 4:] = product.query_frequency
    spectral.key_frequency.data[:, 4:] = product.key_frequency
    spectral.query_bias.data[:, 4:] = product.phase
    spectral.raw_depth.data.copy_(product.raw_depth)
    product.amplitude.data.zero_()
    found, expected = kernels(spectral, product)
    torch.testing.assert_close(4 * found, expected, **EXACT)
