"""The window: exact softmax over the last w tokens, and what it leaves to the linear part."""

import pytest
import torch
from torch import Tensor

from distill.flexformer.engine import future
from distill.flexformer.mixer import Mixer

from .examples import PLAIN, SHAPE, Inputs, draw, randomise
from .paths import PATHS

EXACT = {"rtol": 1e-12, "atol": 1e-12}
EXPONENTIAL = PLAIN | {"map": "exponential", "features": 6, "frequency_scale": 1.0}
MAPS = {
    "zero": PLAIN | {"map": "zero"},
    "exponential": EXPONENTIAL | {"decay": "gated", "decay_groups": 2, "key_weight": "quadratic"},
    "identity": PLAIN | {"map": "identity", "decay": "fixed"},
}
SCALING = 0.5

by_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def build(options: dict, width: int) -> Mixer:
    torch.manual_seed(0)
    return randomise(Mixer(SHAPE, options | {"window": width}).double())


def banded(inputs: Inputs, width: int) -> Tensor:
    """Softmax over the last `width` tokens, densely; 0 for rows that see none."""
    query, key, value = inputs.query, *(x.repeat_interleave(SHAPE.group, 1) for x in (inputs.key, inputs.value))
    logits = query @ key.mT * SCALING
    length = logits.shape[-1]
    seen = (inputs.padding != 0)[:, None, None] & ~future(length, logits.device)
    seen = seen & torch.ones(length, length, dtype=torch.bool).triu(1 - width)
    return logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num() @ value


@pytest.mark.parametrize("width", [9, 10, 100])
@pytest.mark.parametrize("name", MAPS)
@by_path
def test_as_wide_as_the_text_it_is_softmax(path, name: str, width: int):
    inputs, mixer = draw(0, 9), build(MAPS[name], width)
    out, _ = mixer(*inputs[:3], SCALING, inputs.padding, path=path(mixer))
    torch.testing.assert_close(out, banded(inputs, 9), **EXACT)


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 100])
@pytest.mark.parametrize("length", [64, 131])
def test_alone_it_is_softmax_over_the_last_tokens(length: int, width: int):
    """Across the blocks that it is computed in."""
    inputs = draw(1, length, batch=3)
    out, _ = build(MAPS["zero"], width)(*inputs[:3], SCALING, inputs.padding)
    torch.testing.assert_close(out, banded(inputs, width), **EXACT)


def test_of_one_token_alone_it_is_the_value():
    q, k, v, *_ = draw(2, 7)
    out, _ = build(MAPS["zero"], 1)(q, k, v, SCALING)
    torch.testing.assert_close(out, v.repeat_interleave(SHAPE.group, 1), **EXACT)


@pytest.mark.parametrize("size", [1.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_below_nought_its_logits_still_count(size: float, dtype: torch.dtype):
    """Softmax does not know how large logits are, only their differences; e^−1000 is nought in any precision."""
    inputs = draw(3, 20, dtype=dtype)
    inputs = inputs._replace(query=inputs.query.abs() * size, key=-inputs.key.abs())
    out, _ = build(MAPS["zero"], 4).to(dtype)(*inputs[:3], SCALING, inputs.padding)
    torch.testing.assert_close(out, banded(inputs, 4), rtol=1e-5, atol=1e-5)


def beyond(weights: Tensor, width: int) -> Tensor:
    """Σ_{j ≤ i − w} of (B, K, G, N, N) over the rest, for the queries that have such keys."""
    far = weights.tril(-width).sum(-1)
    return (far / (weights.sum(-1) - far))[..., width:]


@pytest.mark.parametrize("raised", [-2.0, 0.5, 3.0])
def test_the_gate_weighs_the_linear_part(raised: float):
    """Its bias by e^raised, against the window."""
    mixer, (q, k, *_) = build(MAPS["exponential"], 3), draw(4, 10)
    before = beyond(mixer.scores(q, k, SCALING), 3)
    with torch.no_grad():
        mixer.window.bias += raised
    found = beyond(mixer.scores(q, k, SCALING), 3)
    torch.testing.assert_close((found / before).log(), torch.full_like(found, raised))


def test_the_gate_is_a_quadratic_of_the_scaled_query():
    mixer, (q, k, *_) = build(MAPS["exponential"], 3), draw(5, 10)
    u, c = mixer.window.coefficients
    scaled = q * SCALING**0.5
    expected = mixer.window.bias[:, None] + torch.einsum("bhnd,hd->bhn", scaled, u)
    expected = expected + torch.einsum("bhnd,hd->bhn", scaled**2, c)
    torch.testing.assert_close(mixer.window.gate(scaled), expected, **EXACT)
    opened = beyond(mixer.scores(q, k, SCALING), 3)
    with torch.no_grad():
        for parameter in mixer.window.parameters():
            parameter.zero_()
    shut = beyond(mixer.scores(q, k, SCALING), 3)
    torch.testing.assert_close((opened / shut).log().flatten(1, 2), expected[..., 3:])


@by_path
@pytest.mark.parametrize("bias", [-900.0, 900.0])
def test_an_extreme_gate_neither_overflows_nor_leaks(path, bias: float):
    """Shut, the window is alone; wide open, the linear part is, where it has keys."""
    mixer, inputs = build(MAPS["exponential"], 3), draw(6, 10)
    with torch.no_grad():
        mixer.window.bias.fill_(bias)
    out, _ = mixer(*inputs[:3], SCALING, inputs.padding, path=path(mixer))
    mixer.parts = {"window"} if bias < 0 else {"linear"}
    alone, _ = mixer(*inputs[:3], SCALING, inputs.padding, path=path(mixer))
    rows = slice(0, None) if bias < 0 else slice(7, None)
    torch.testing.assert_close(out[:, :, rows], alone[:, :, rows], **EXACT)
    assert alone[:, :, 7:].any()


@by_path
def test_a_key_begins_to_decay_when_it_leaves(path):
    """With γ as low as it goes, e^−50: only the key that leaves as the query comes still counts beyond the window."""
    mixer, (q, k, v, *_) = build(EXPONENTIAL | {"decay": "learned"}, 3), draw(7, 10)
    mixer.decay.log_rate.data.fill_(7.0)
    weights = mixer.scores(q, k, SCALING)
    assert (weights.diagonal(-3, -2, -1) > 0).all() and weights.tril(-4).max() < 1e-20
    out, _ = mixer(q, k, v, SCALING, path=path(mixer))
    expected = (weights / weights.sum(-1, keepdim=True) @ v[:, :, None]).flatten(1, 2)
    torch.testing.assert_close(out, expected, **EXACT)


def test_memory_of_a_text_shorter_than_the_window():
    mixer, (q, k, v, _, padding) = build(MAPS["exponential"], 6), draw(8, 4)
    _, memory = mixer(q, k, v, SCALING, padding)
    assert torch.equal(memory.keys[:, :, 2:], k) and torch.equal(memory.values[:, :, 2:], v)
    assert torch.equal(memory.present[:, 2:], padding.bool()) and not memory.present[:, :2].any()
    assert not memory.sums.any()
