"""The cache's own methods, one by one."""

import pytest
import torch

from distill.flexformer.cache import FlexformerCache
from distill.flexformer.engine import State


@pytest.fixture
def cache() -> FlexformerCache:
    made = FlexformerCache(2)
    for layer, start in zip(made.layers, (0.0, 100.0), strict=True):
        maximum = start + torch.arange(6.0).view(3, 2)
        layer.state = State(maximum[..., None, None].expand(3, 2, 4, 5).clone(), maximum)
        layer.update(torch.zeros(3, 2, 7, 4), torch.zeros(3, 2, 7, 4))
    return made


def rows(cache: FlexformerCache) -> list[list[float]]:
    """Which of the original rows stand where, by layer; sums and maximum must have moved together."""
    for layer in cache.layers:
        assert (layer.state.sums == layer.state.maximum[..., None, None]).all()
    return [(layer.state.maximum[:, 0] % 100 / 2).tolist() for layer in cache.layers]


def test_beams_are_reordered_in_every_layer(cache: FlexformerCache):
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert rows(cache) == [[2, 0, 0]] * 2


def test_rows_are_selected(cache: FlexformerCache):
    cache.batch_select_indices(torch.tensor([1, 2]))
    assert rows(cache) == [[1, 2]] * 2


def test_rows_are_repeated(cache: FlexformerCache):
    cache.batch_repeat_interleave(2)
    assert rows(cache) == [[0, 0, 1, 1, 2, 2]] * 2


def test_lengths(cache: FlexformerCache):
    assert cache.get_seq_length() == 7
    assert cache.layers[0].get_mask_sizes(3) == (10, 0)
    assert cache.layers[0].get_mask_sizes(torch.arange(3)) == (10, 0)
    assert cache.layers[0].get_max_length() == cache.layers[0].get_max_cache_shape() == -1


def test_update_hands_on_what_it_was_given():
    layer, key, value = FlexformerCache(1).layers[0], torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    assert not layer.is_initialized
    same = layer.update(key, value)
    assert same[0] is key and same[1] is value and layer.is_initialized


def test_reset_forgets(cache: FlexformerCache):
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0
    assert all(layer.state is None for layer in cache.layers)


def test_bytes_are_those_of_the_states(cache: FlexformerCache):
    assert cache.nbytes == 2 * 3 * 2 * (4 * 5 + 1) * 4


def test_what_went_in_cannot_be_taken_out(cache: FlexformerCache):
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(3)


def test_states_move(cache: FlexformerCache):
    cache.layers[0].offload()
    assert rows(cache) == [[0, 1, 2]] * 2
    with pytest.raises(ValueError, match="not offloaded"):
        cache.layers[0].prefetch()


def test_an_empty_cache_can_be_rearranged():
    """Beam search repeats and reorders before the first token, too."""
    cache = FlexformerCache(1)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.reorder_cache(torch.tensor([0]))
    cache.layers[0].offload()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0
