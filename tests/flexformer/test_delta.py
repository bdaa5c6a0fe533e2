"""The delta rule: a key writes over what stands in its place, and what is read is a value."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from distill.flexformer.delta import DELTA
from distill.flexformer.engine import Features
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from .examples import PLAIN, SHAPE, draw, randomise
from .paths import PATHS

FOURIER = PLAIN | {
    "map": "stationary",
    "features": 64,
    "frequency_scale": 1.0,
    "positive": False,
    "order": 1,
    "decay": "delta",
}
by_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def remembering(options: dict = FOURIER, shape: HeadShape = SHAPE) -> Mixer:
    """With β all but 1 and γ all but 1: a key takes all of its place, and nothing fades."""
    torch.manual_seed(0)
    mixer = Mixer(shape, options).double()
    with torch.no_grad():
        mixer.decay.share_bias.fill_(40.0)
        mixer.decay.bias.fill_(-40.0)
    return mixer


@pytest.mark.parametrize("way", DELTA, ids=DELTA._fields)
def test_it_is_the_gated_delta_rule_of_transformers(way):
    """Two query heads for each key head, unit queries and keys; theirs divides by √F."""
    source = torch.Generator().manual_seed(0)
    key, query = (normalize(torch.randn(2, heads, 90, 6, generator=source), dim=-1) for heads in (2, 4))
    value = torch.randn(2, 2, 90, 5, generator=source)
    beta, decay = (torch.rand(2, 2, 90, generator=source) for _ in range(2))
    (sums, _), state = way(Features(query, key, beta.log(), decay.log()[..., None]), value)

    # Of the column of ones the rule makes what it makes of any value.
    value_and_one = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    theirs = [x.repeat_interleave(2, 1).transpose(1, 2) for x in (key, value_and_one, decay.log(), beta)]
    expected, last = torch_recurrent_gated_delta_rule(query.transpose(1, 2), *theirs, output_final_state=True)
    torch.testing.assert_close(sums, expected.transpose(1, 2) * 6**0.5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.sums, last[:, ::2], rtol=1e-4, atol=1e-4)


@by_path
def test_a_key_reads_back_the_value_that_it_wrote_last(path):
    """However many others wrote before, and where the sum of weights would have given their mean."""
    mixer, (_, k, v, *_) = remembering(), draw(0, 12)
    k[:, :, 9] = k[:, :, 4]
    query = k.repeat_interleave(SHAPE.group, 1)
    out, _ = mixer(query, k, v, 0.5, path=path(mixer))
    torch.testing.assert_close(out, v.repeat_interleave(SHAPE.group, 1), rtol=1e-9, atol=1e-9)


@by_path
def test_what_is_familiar_is_read_louder(path):
    """Its familiarity is 1 where the key was written."""
    mixer, (_, k, v, *_) = remembering(), draw(0, 12)
    query = k.repeat_interleave(SHAPE.group, 1)
    mixer.reading.louder.data.copy_(torch.linspace(-1.0, 2.0, SHAPE.heads))
    out, _ = mixer(query, k, v, 0.5, path=path(mixer))
    gain = (mixer.reading.louder * math.tanh(1)).exp()[:, None, None]
    torch.testing.assert_close(out, gain * v.repeat_interleave(SHAPE.group, 1), rtol=1e-9, atol=1e-9)


def test_beside_a_window_what_is_familiar_weighs_more():
    """Where the linear part is still empty the weight changes nothing, and without a window there is none."""
    torch.manual_seed(0)
    mixer, (q, k, v, *_) = Mixer(SHAPE, FOURIER | {"window": 3}).double(), draw(0, 12)
    before = mixer(q, k, v, 0.5)[0]
    mixer.reading.heavier.data.fill_(30.0)
    after = mixer(q, k, v, 0.5)[0]
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3])
    mixer.parts = {"linear"}
    torch.testing.assert_close(after[:, :, -1:], mixer(q, k, v, 0.5)[0][:, :, -1:], rtol=1e-3, atol=1e-3)
    assert Mixer(SHAPE, FOURIER).reading.heavier is None


@by_path
def test_what_is_strange_weighs_as_ever(path):
    """A query that is orthogonal to all keys beyond the window has no familiarity, one that is like the first has."""
    mixer = remembering(PLAIN | {"map": "identity", "decay": "delta", "window": 2}, HeadShape(1, 1, 4))
    k, v = torch.eye(4, dtype=torch.float64)[None, None], torch.randn(1, 1, 4, 4, dtype=torch.float64)
    query = k, torch.cat([k[:, :, :3], k[:, :, :1]], 2)
    before = [mixer(q, k, v, 1.0, path=path(mixer))[0][:, :, -1] for q in query]
    mixer.reading.heavier.data.fill_(30.0)
    strange, familiar = (mixer(q, k, v, 1.0, path=path(mixer))[0][:, :, -1] for q in query)
    torch.testing.assert_close(strange, before[0])
    torch.testing.assert_close(familiar, v[:, :, 0], rtol=1e-6, atol=1e-6)


def test_what_it_reads_of_older_keys_is_nearer_to_their_values_than_a_sum_is():
    """Twenty keys in sixty-four features: written over and not added up, each can still be told from the others."""
    torch.manual_seed(1)
    shape = HeadShape(1, 1, 16)
    k, v = (torch.randn(1, 1, 20, 16, dtype=torch.float64) for _ in range(2))
    errors = {}
    for decay in ("delta", "none"):
        torch.manual_seed(0)
        mixer = Mixer(shape, FOURIER | {"decay": decay}).double()
        if decay == "delta":
            mixer.decay.share_bias.data.fill_(40.0)
            mixer.decay.bias.data.fill_(-40.0)
        _, memory = mixer(k, k, v, 1.0)
        read = torch.cat([mixer(k[:, :, i : i + 1], k, v, 1.0, torch.zeros(1, 1), memory)[0] for i in range(20)], 2)
        errors[decay] = (read - v).square().mean() / v.square().mean()
    assert errors["delta"] < 0.1 * errors["none"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_that_are_all_alike_do_not_pile_up(dtype: torch.dtype):
    """Each writes over the one before."""
    mixer = remembering().to(dtype)
    q, k, v, *_ = draw(0, 1500, dtype=dtype)
    k = k[:, :, :1] + 0.01 * k
    out, memory = mixer(q, k, v, 0.5)
    assert out.isfinite().all() and memory.sums.square().sum((-1, -2)).max() < 1e3


def test_features_of_any_length_write_alike(monkeypatch: pytest.MonkeyPatch):
    """A map's own size does not matter, nor a factor that it leaves to the normaliser."""
    mixer, (q, k, v, *_) = randomise(Mixer(SHAPE, PLAIN | {"map": "elu", "decay": "delta"}).double()), draw(2, 9)
    before = mixer(q, k, v, 0.5)[0]
    query_features, key_features = mixer.map.query_features, mixer.map.key_features
    monkeypatch.setattr(mixer.map, "query_features", lambda *given: 1e-3 * query_features(*given))
    monkeypatch.setattr(mixer.map, "key_features", lambda *given: (1e3 * key_features(*given)[0], k.sum(-1)))
    torch.testing.assert_close(mixer(q, k, v, 0.5)[0], before)


@by_path
@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_a_key_of_no_length_harms_nothing(path, size: float):
    """Neither forwards nor backwards: it has no place to write to."""
    mixer = Mixer(SHAPE, PLAIN | {"map": "identity", "decay": "delta"})
    q, k, v, *_ = draw(3, 9, dtype=torch.float32)
    k[:, :, 4] *= size
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = mixer(*leaves, 0.5, path=path(mixer))
    gradients = torch.autograd.grad(out.square().sum(), [*leaves, *mixer.parameters()])
    assert out.isfinite().all() and all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("decay", ["delta", "none"])
def test_its_weights_cannot_be_compared_with_softmaxs(decay: str):
    mixer = Mixer(SHAPE, PLAIN | {"map": "elu", "decay": decay})
    assert mixer.averages == mixer.comparable == (decay == "none")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key_weight": "linear"}, ["mixer.key_weight=linear", "mixer.decay=delta", "key_weight=none"]),
        ({"decay_groups": 2}, ["mixer.decay_groups=2", "gated"]),
    ],
)
def test_what_it_does_not_go_with(change: dict, named: list[str]):
    with pytest.raises(ValueError, match=r"^mixer\.") as raised:
        Mixer(SHAPE, FOURIER | change)
    assert all(each in str(raised.value) for each in named)
