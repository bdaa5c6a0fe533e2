"""What each mixer computes, against the closed form of its kernel."""

import pytest
import torch
from torch import Tensor

from distill.flexformer.feature_map import HeadShape
from distill.flexformer.options import MAPS

from . import reference
from .examples import EXAMPLES, PLAIN, Case, draw


def kernel_matrix(feature_map, query: Tensor, key: Tensor, first: int = 0) -> Tensor:
    """κ (B, H, N, N) through the features, key log-scale included; positions count from `first`."""
    position = first + torch.arange(key.shape[2]).expand(key.shape[0], -1)
    features, log_scale = feature_map.key_features(key, position)
    if log_scale is not None:
        features = features * log_scale.exp()[..., None]
    group = feature_map.shape.group
    return feature_map.query_features(query, position) @ features.repeat_interleave(group, 1).mT


def test_every_map_has_an_example():
    assert EXAMPLES.keys() == MAPS.keys()


@pytest.mark.parametrize("length", [1, 7])
def test_output_is_the_formula(case: Case, length: int):
    mixer, inputs = case.mixer(seed=1), draw(1, length)
    out, _ = mixer(*inputs[:3], 0.5, inputs.padding)
    expected, trusted = reference.attention(mixer, case.kernel, *inputs[:3], inputs.padding, scaling=0.5)
    assert trusted.float().mean() > 0.8
    torch.testing.assert_close(out[trusted], expected[trusted], rtol=1e-9, atol=1e-9)


class Reading:
    """Notes which tensors of a map a closed form reads."""

    def __init__(self, feature_map):
        self.feature_map, self.names = feature_map, set()

    def __getattr__(self, name: str):
        value = getattr(self.feature_map, name)
        if isinstance(value, Tensor):
            self.names.add(name)
        return value


def test_all_that_the_formula_reads_is_trained(case: Case):
    """And nothing else: a map has no idle parameters. Only the draws of the random features are fixed."""
    mixer, inputs = case.mixer(), draw(0, 1)
    reading = Reading(mixer.map)
    case.kernel(reading, 0, 0, inputs.query[0, 0, 0], inputs.key[0, 0, 0], 0, 0)
    fixed = {"frequency"} if case.options["map"] in ("favor", "rfa") else set()
    if case.options["frozen"]:
        fixed = set(mixer.map.frequencies)
    assert {name for name, _ in mixer.map.named_buffers()} == fixed
    assert {name for name, _ in mixer.map.named_parameters()} == reading.names - fixed


def test_scaling_is_the_one_given(case: Case):
    mixer, inputs = case.mixer(seed=2), draw(2, 5)
    out, _ = mixer(*inputs[:3], 0.3)
    expected, trusted = reference.attention(mixer, case.kernel, *inputs[:3], scaling=0.3)
    torch.testing.assert_close(out[trusted], expected[trusted], rtol=1e-9, atol=1e-9)


def looks_at_keys(case: Case) -> bool:
    if case.options["window"]:
        return True
    return case.options["map"] != "zero" and (case.options["map"], case.options["key_weight"]) != ("constant", "none")


def test_query_heads_read_their_own_key_head(case: Case):
    mixer, inputs = case.mixer(seed=3), draw(3, 6)
    changed = torch.stack([inputs.key[:, 0], draw(30, 6).key[:, 1]], 1)
    before, after = (mixer(inputs.query, key, inputs.value, 0.5)[0] for key in (inputs.key, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    if looks_at_keys(case):
        assert not torch.isclose(before[:, 2:, 1:], after[:, 2:, 1:]).all(-1).any()


def least(feature_map) -> Tensor:
    """The minimum of the whole kernel (H, 1, 1): the sum of its atoms'."""
    minimum = feature_map.minimum()
    return torch.zeros(()) if minimum is None else minimum.sum(-1)[:, None, None]


def test_sign_is_as_declared(case: Case):
    mixer, inputs = case.mixer(seed=4), draw(4, 60)
    values = kernel_matrix(mixer.map, 3 * inputs.query, 3 * inputs.key)
    assert mixer.map.positive == bool((values > 0).all())
    if mixer.map.positive:
        assert (values >= least(mixer.map) * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", ["stationary", "nonstationary"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_products_attain_their_minimum(name: str, order: int):
    """With no more factors than dimensions, some q turns every cosine to −1 at once."""
    options = PLAIN | {"map": name, "features": 2 * 3**order, "frequency_scale": 1.0}
    shape = HeadShape(heads=4, kv_heads=2, head_dim=6)
    positive = Case("", options | {"positive": True, "order": order}, None).mixer(seed=5, shape=shape).map
    key = draw(5, 1, 1, shape).key
    angle = positive.key_frequency @ key[0].mT
    target = torch.pi + angle.squeeze(-1).repeat_interleave(2, 0)
    frequency = positive.key_frequency.repeat_interleave(2, 0)
    if name == "nonstationary":
        frequency, target = positive.query_frequency, target - positive.phase
    query = (torch.linalg.pinv(frequency) @ target[..., None]).mT[None]
    torch.testing.assert_close(kernel_matrix(positive, query, key), least(positive)[None], rtol=1e-10, atol=1e-14)
