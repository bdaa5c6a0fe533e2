"""The engine alone, on features made by hand."""

import pytest
import torch

from distill.flexformer.engine import NO_KEYS, Features, chunked, divide, parallel, recurrent, scores

PATHS = {
    "parallel": parallel,
    "chunked": lambda *args: chunked(*args, chunk=2)[0],
    "recurrent": lambda *args: recurrent(*args)[0],
}


def ones(log_weight: list[float], dtype: torch.dtype = torch.float64) -> Features:
    """One head and κ = 1: attention by key weight alone."""
    query = torch.ones(1, 1, len(log_weight), 1, dtype=dtype)
    return Features(query, query, torch.tensor([[log_weight]], dtype=dtype), 1e-20)


def numbers(length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.arange(1, length + 1, dtype=dtype)[None, None, :, None]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_equal_weights_give_the_running_mean(path):
    torch.testing.assert_close(path(ones([0.0] * 5), numbers(5)).flatten(), torch.arange(2, 7).double() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_huge_weights_neither_overflow_nor_vanish(path, dtype: torch.dtype):
    """Each weight dwarfs those before or is dwarfed by them: e^1000 is no float, and no path may form it."""
    log_weight = [-5000.0, -4000.0, 1000.0, 0.0, 1000.0, 5000.0, -5000.0]
    out = path(ones(log_weight, dtype), numbers(7, dtype)).flatten()
    assert out.tolist() == [1, 2, 3, 3, 4, 6, 6]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_row_without_keys_is_zero(path):
    none = -torch.inf
    out = path(ones([none, none, none, 0.0, none, 0.0]), numbers(6)).flatten()
    assert out.tolist() == [0, 0, 0, 4, 4, 5]


def test_state_without_keys_is_empty():
    for _, state in (chunked(ones([-torch.inf] * 3), numbers(3)), recurrent(ones([-torch.inf] * 3), numbers(3))):
        assert not state.sums.any()
        assert (state.maximum == NO_KEYS).all()


def test_scores_are_causal_and_at_most_one():
    s = scores(ones([3.0, 1.0, 4.0]))[0, 0, 0]
    expected = torch.tensor([[1, 0, 0], [1, torch.e**-2, 0], [torch.e**-1, torch.e**-3, 1]], dtype=torch.float64)
    torch.testing.assert_close(s, expected)


def test_denominator_rule():
    """z itself from ε on, ±ε below it, and 0 / ε where there is nothing."""
    z = torch.tensor([2.0, -2.0, 0.1, -0.1, 0.05, -0.05, 0.0], dtype=torch.float64)
    numerator = torch.tensor([1, 1, 1, 1, 1, 1, 0], dtype=torch.float64)
    out = divide(torch.stack([numerator, z], -1), epsilon=0.1).flatten()
    torch.testing.assert_close(out, torch.tensor([0.5, -0.5, 10, -10, 10, -10, 0], dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_path_keeps_the_denominator_rule(path):
    """Two signed kernel values that cancel to −10⁻⁴."""
    query = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    key = torch.tensor([1.0, -1.0001], dtype=torch.float64)[None, None, :, None]
    features = Features(query, key, torch.zeros(1, 1, 2, dtype=torch.float64), 1e-3)
    out = path(features, numbers(2)).flatten()
    torch.testing.assert_close(out, torch.tensor([1.0, (1 - 2 * 1.0001) / -1e-3], dtype=torch.float64))
