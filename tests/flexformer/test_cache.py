"""The cache's own methods, one by one."""

import pytest
import torch

from distill.flexformer.cache import ExactLayer, FlexformerCache, StateLayer
from distill.flexformer.mixer import Memory

#: Of each part of a memory, beyond the batch.
SIZES = Memory(sums=(2, 4, 5), maximum=(2, 3), seen=(), keys=(2, 6, 4), values=(2, 6, 4), present=(6,))


@pytest.fixture
def cache() -> FlexformerCache:
    """Two swapped layers around an exact one; every number says which row it belongs to."""
    made = FlexformerCache([False, True, False])
    row = torch.arange(3.0)
    for layer in made.memories:
        key = row.view(3, 1, 1, 1).expand(3, 2, 7, 4)
        layer.update(key, key)
        if isinstance(layer, StateLayer):
            layer.memory = Memory(*(row.view(3, *[1] * len(size)).expand(3, *size).clone() for size in SIZES))
    return made


def rows(cache: FlexformerCache) -> list[list[float]]:
    """Which of the original rows stand where, by layer; all parts must have moved together."""
    found = []
    for layer in cache.memories:
        parts = layer.memory if isinstance(layer, StateLayer) else (layer.keys, layer.values)
        of_parts = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts]
        assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in of_parts)
        assert all(torch.equal(part[:, 0], of_parts[0][:, 0]) for part in of_parts)
        found.append(of_parts[0][:, 0].tolist())
    return found


def test_beams_are_reordered_in_every_layer(cache: FlexformerCache):
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert rows(cache) == [[2, 0, 0]] * 3


def test_rows_are_selected(cache: FlexformerCache):
    cache.batch_select_indices(torch.tensor([1, 2]))
    assert rows(cache) == [[1, 2]] * 3


def test_rows_are_repeated(cache: FlexformerCache):
    cache.batch_repeat_interleave(2)
    assert rows(cache) == [[0, 0, 1, 1, 2, 2]] * 3


def test_lengths(cache: FlexformerCache):
    assert cache.get_seq_length() == 7
    assert cache.layers[0].get_mask_sizes(3) == (10, 0)
    assert cache.layers[0].get_mask_sizes(torch.arange(3)) == (10, 0)
    assert cache.layers[0].get_max_length() == cache.layers[0].get_max_cache_shape() == -1


def test_kinds_of_layers():
    cache = FlexformerCache([True, False])
    assert isinstance(cache.memories[0], ExactLayer) and isinstance(cache.memories[1], StateLayer)
    assert list(cache.layers) == cache.memories


def test_update_hands_on_what_it_was_given():
    layer, key, value = StateLayer(), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    assert not layer.is_initialized
    same = layer.update(key, value)
    assert same[0] is key and same[1] is value and layer.is_initialized


def test_an_exact_layer_hands_on_all_that_came():
    layer, key = ExactLayer(), torch.randn(1, 2, 5, 4)
    assert layer.nbytes == 0
    layer.update(key[:, :, :3], -key[:, :, :3])
    keys, values = layer.update(key[:, :, 3:], -key[:, :, 3:])
    assert torch.equal(keys, key) and torch.equal(values, -key)
    assert layer.nbytes == 2 * key.nbytes and layer.get_seq_length() == 5


def test_reset_forgets(cache: FlexformerCache):
    cache.reset()
    assert cache.layers[0].get_seq_length() == 0 and cache.state_bytes == 0
    assert cache.memories[0].memory is None and cache.memories[2].memory is None


def test_bytes_are_those_of_the_memories(cache: FlexformerCache):
    each = sum(torch.Size(size).numel() for size in SIZES) * 4 * 3
    assert cache.state_bytes == 2 * each
    assert cache.nbytes == 2 * each + 2 * 3 * 2 * 7 * 4 * 4


def test_what_went_in_cannot_be_taken_out(cache: FlexformerCache):
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(3)


def test_memories_move(cache: FlexformerCache):
    cache.layers[0].offload()
    assert rows(cache) == [[0, 1, 2]] * 3
    with pytest.raises(ValueError, match="not offloaded"):
        cache.layers[0].prefetch()


def test_an_empty_cache_can_be_rearranged():
    """Beam search repeats and reorders before the first token, too."""
    cache = FlexformerCache([False, True])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.reorder_cache(torch.tensor([0]))
    cache.layers[0].offload()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0
