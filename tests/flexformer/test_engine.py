"""The engine alone, on features made by hand."""

from functools import partial

import pytest
import torch

from distill.flexformer.engine import NO_KEYS, Features, chunked, log_scores, parallel, recurrent, scores
from distill.flexformer.normaliser import divide

PATHS = {"parallel": parallel, "chunked": partial(chunked, chunk=2), "recurrent": recurrent}
by_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def ones(log_weight: list[float], dtype: torch.dtype = torch.float64, gamma: tuple[float, ...] = (1.0,)) -> Features:
    """One head and κ = 1, in as many groups as there are γ: attention by key weight and decay alone."""
    query = torch.full((1, 1, len(log_weight), len(gamma)), len(gamma) ** -0.5, dtype=dtype)
    log_decay = torch.tensor(gamma, dtype=dtype).log().expand(1, 1, len(log_weight), -1)
    return Features(query, query, torch.tensor([[log_weight]], dtype=dtype), log_decay)


def numbers(length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.arange(1, length + 1, dtype=dtype)[None, None, :, None]


def mean(path, features: Features, value: torch.Tensor, epsilon: float = 1e-20) -> torch.Tensor:
    return divide(path(features, value)[0].sums, epsilon).flatten()


@by_path
def test_equal_weights_give_the_running_mean(path):
    torch.testing.assert_close(mean(path, ones([0.0] * 5), numbers(5)), torch.arange(2, 7).double() / 2)


@by_path
def test_sums_and_shift_are_those_of_the_weights(path):
    """Σ_j L_ij e^{w_j} [v_j, 1] is what is handed out, times e^shift; no weight passes 1 in it."""
    (sums, shift), _ = path(ones([2.0, 0.0, 1.0, -1.0], gamma=(0.5, 0.25)), numbers(4))
    weights = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(i + 1):
            weights[i, j] = torch.tensor([2.0, 0.0, 1.0, -1.0])[j].exp() * (0.5 ** (i - j) + 0.25 ** (i - j)) / 2
    expected = weights @ torch.cat([numbers(4)[0, 0], torch.ones(4, 1)], -1)
    torch.testing.assert_close(sums[0, 0] * shift[0, 0, :, None].exp(), expected, rtol=1e-6, atol=0)
    # Of the slower group: 2, then what is left of it until a key of its own weight is larger.
    slow = torch.log(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(shift[0, 0], torch.stack([0 * slow + 2, 2 + slow, 0 * slow + 1, 1 + slow]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@by_path
def test_huge_weights_neither_overflow_nor_vanish(path, dtype: torch.dtype):
    """Each weight dwarfs those before or is dwarfed by them: e^1000 is no float, and no path may form it."""
    log_weight = [-5000.0, -4000.0, 1000.0, 0.0, 1000.0, 5000.0, -5000.0]
    assert mean(path, ones(log_weight, dtype), numbers(7, dtype)).tolist() == [1, 2, 3, 3, 4, 6, 6]


@by_path
def test_what_has_decayed_without_a_successor_still_weighs(path):
    """Of the first of 2,001 tokens γ = ½ leaves 2⁻²⁰⁰⁰, which is no float; the mean is of it alone."""
    features = ones([0.0, *[-torch.inf] * 2000], gamma=(0.5,))
    assert (mean(path, features, numbers(2001)) == 1).all()


@by_path
def test_the_slowest_group_has_the_last_word(path):
    """Its first key outweighs all that follow, whatever became of it in the faster one."""
    found = mean(path, ones([600.0, *[0.0] * 299], gamma=(1.0, 1e-3)), numbers(300))
    torch.testing.assert_close(found, torch.ones_like(found))


@by_path
def test_a_row_without_keys_is_zero(path):
    none = -torch.inf
    assert mean(path, ones([none, none, none, 0.0, none, 0.0]), numbers(6)).tolist() == [0, 0, 0, 4, 4, 5]


@pytest.mark.parametrize("path", [chunked, recurrent])
def test_state_without_keys_is_empty(path):
    _, state = path(ones([-torch.inf] * 3, gamma=(1.0, 0.5)), numbers(3))
    assert not state.sums.any()
    assert (state.maximum <= NO_KEYS / 2).all() and state.maximum.isfinite().all()


def test_scores_are_causal_and_at_most_one():
    s, shift = scores(ones([3.0, 1.0, 4.0]))
    expected = torch.tensor([[1, 0, 0], [1, torch.e**-2, 0], [torch.e**-1, torch.e**-3, 1]], dtype=torch.float64)
    torch.testing.assert_close(s[0, 0, 0], expected)
    assert shift.flatten().tolist() == [3, 3, 4]


def test_log_scores_are_the_logarithm_of_the_scores():
    features = ones([3.0, 1.0, 4.0, -2.0], gamma=(0.9, 0.3))
    s, shift = scores(features)
    torch.testing.assert_close(log_scores(features)[0, 0, 0], s[0, 0, 0].log() + shift[0, 0, :, None])
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(log_scores(features, rows), log_scores(features)[..., rows, :])


@by_path
def test_every_path_keeps_the_denominator_rule(path):
    """Two signed kernel values that cancel to −10⁻⁴."""
    key = torch.tensor([1.0, -1.0001], dtype=torch.float64)[None, None, :, None]
    out = mean(path, ones([0.0, 0.0])._replace(key=key), numbers(2), 1e-3)
    torch.testing.assert_close(out, torch.tensor([1.0, (1 - 2 * 1.0001) / -1e-3], dtype=torch.float64))


def test_going_backwards_takes_no_chunk_by_its_number():
    """Each such gradient would be as large as that of all chunks: time would grow with their square."""
    made = ones([0.0] * 40)
    made.key.requires_grad_()
    out, _ = chunked(made, numbers(40), chunk=4)
    seen, waiting = set(), [out.sums.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
    assert not [node for node in seen if node.name().startswith("Select")]
