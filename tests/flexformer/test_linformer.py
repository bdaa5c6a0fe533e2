"""Linformer against its formula, token by token, and against softmax where the two are one."""

import copy
import io

import pytest
import torch
from torch import Tensor

from distill.flexformer.build import build_mixer
from distill.flexformer.exact import exact_attention
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.linformer import Linformer

#: Two query heads per key-value head.
SHAPE = HeadShape(heads=4, kv_heads=2, head_dim=3)
OPTIONS = {"map": "linformer", "features": 4, "length": 9}
SCALING = 0.4


def mixer(features: int = 4, length: int = 9, seed: int = 0) -> Linformer:
    torch.manual_seed(seed)
    made = Linformer(SHAPE, features, length).double()
    with torch.no_grad():
        made.key_projection.normal_(std=length)
        made.value_projection.normal_(std=length)
    return made


def draw(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, heads, tokens, 3) for heads in (SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads)]
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


def padding(side: str, tokens: int) -> Tensor | None:
    """Row b misses b tokens on its side."""
    if side == "none":
        return None
    if side == "holes":
        return torch.tensor([[(b + n) % 3 != 0 for n in range(tokens)] for b in range(3)])
    present = torch.arange(tokens)[None] >= torch.arange(3)[:, None]
    return (present if side == "left" else present.flip(1)).long()


def by_loop(made: Linformer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Σ_f softmax_f(scaling q·Σ_n E_fn k_n) Σ_n F_fn v_n, n counting the real tokens of the text.

    f counts the mixtures whose stretch of columns the text has reached.
    """
    out = torch.zeros_like(query)
    for b in range(len(query)):
        real = [n for n in range(query.shape[2]) if mask is None or mask[b, n]]
        begun = sorted({n * made.feature_dim // made.length for n in range(len(real))})
        for h in range(SHAPE.heads):
            g = h // SHAPE.group
            keys = [
                sum(made.key_projection[g, f, n] / made.length * key[b, g, t] for n, t in enumerate(real))
                for f in begun
            ]
            values = [
                sum(made.value_projection[g, f, n] / made.length * value[b, g, t] for n, t in enumerate(real))
                for f in begun
            ]
            for i in range(query.shape[2]):
                weights = torch.stack([torch.exp(SCALING * (query[b, h, i] @ each)) for each in keys])
                out[b, h, i] = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
    return out


@pytest.mark.parametrize("tokens", [9, 5])
@pytest.mark.parametrize("side", ["none", "left", "right", "holes"])
def test_it_is_the_formula(side: str, tokens: int):
    made, mask = mixer(), padding(side, tokens)
    found, memory = made(*draw(tokens), SCALING, mask)
    assert memory is None
    torch.testing.assert_close(found, by_loop(made, *draw(tokens), mask), rtol=1e-12, atol=1e-12)


def test_it_starts_from_means_of_neighbours():
    made = Linformer(SHAPE, 4, 9)
    expected = torch.zeros(4, 9)
    for f, stretch in enumerate(([0, 1, 2], [3, 4], [5, 6], [7, 8])):
        expected[f, stretch] = 1 / len(stretch)
    for projection in (made.key_projection, made.value_projection):
        torch.testing.assert_close(projection / 9, expected.expand(2, 4, 9))


@pytest.mark.parametrize("tokens", [3, 5, 7, 9])
def test_values_of_a_short_text_keep_their_size(tokens: int):
    """As it starts, over whole stretches: the mean of equal values is that value."""
    made, (query, key, _) = Linformer(SHAPE, 4, 9).double(), draw(tokens)
    out, _ = made(query, key, torch.ones_like(key), SCALING)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_full_rank_identity_is_softmax():
    made = mixer(features=9)
    with torch.no_grad():
        made.key_projection.copy_(9 * torch.eye(9))
        made.value_projection.copy_(9 * torch.eye(9))
    expected = exact_attention(*draw(9), SCALING, None, causal=False)
    torch.testing.assert_close(made(*draw(9), SCALING)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_is_the_text_alone(side: str):
    made, (query, key, value) = mixer(), draw(8)
    mask = padding(side, 8)
    found, _ = made(query, key, value, SCALING, mask)
    for b in range(3):
        real = mask[b].bool()
        alone, _ = made(*(x[b : b + 1, :, real] for x in (query, key, value)), SCALING)
        torch.testing.assert_close(found[b : b + 1, :, real], alone, rtol=1e-12, atol=1e-12)


def test_padding_may_hold_anything():
    made, (query, key, value) = mixer(), draw(8)
    mask = padding("right", 8)
    found, _ = made(query, key, value, SCALING, mask)
    for x in (key, value):
        x.masked_fill_(mask[:, None, :, None] == 0, 1e9)
    assert torch.equal(made(query, key, value, SCALING, mask)[0], found)


def test_gradients():
    made = mixer()
    inputs = [x.requires_grad_() for x in draw(5)]
    names = ("key_projection", "value_projection")

    def run(key_projection: Tensor, value_projection: Tensor, *qkv: Tensor) -> Tensor:
        given = dict(zip(names, (key_projection, value_projection), strict=True))
        return torch.func.functional_call(made, given, (*qkv, SCALING, padding("left", 5)))[0]

    assert torch.autograd.gradcheck(run, (*(made.get_parameter(name) for name in names), *inputs))


def test_every_key_value_head_has_projections_of_its_own():
    made, (query, key, value) = mixer(), draw(9)
    before, _ = made(query, key, value, SCALING)
    with torch.no_grad():
        made.value_projection[1] += 1
    after, _ = made(query, key, value, SCALING)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.isclose(before[:, 2:], after[:, 2:]).any()


def test_it_looks_ahead():
    made, (query, key, value) = mixer(), draw(9)
    before, _ = made(query, key, value, SCALING)
    key[:, :, -1] += 1
    assert (made(query, key, value, SCALING)[0] - before)[:, :, 0].norm() > 0.1


def test_saved_and_loaded():
    made, file = mixer(seed=3), io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = mixer(seed=4)
    other.load_state_dict(torch.load(file, weights_only=True))
    expected, _ = made(*draw(9), SCALING)
    assert torch.equal(other(*draw(9), SCALING)[0], expected)
    assert torch.equal(copy.deepcopy(made)(*draw(9), SCALING)[0], expected)


def test_half_precision_in_and_out():
    made = mixer().bfloat16()
    query, key, value = (x.bfloat16() for x in draw(9))
    out, _ = made(query, key, value, SCALING)
    assert out.dtype == torch.bfloat16
    wide = copy.deepcopy(made).float()(query.float(), key.float(), value.float(), SCALING)[0]
    assert torch.equal(out, wide.bfloat16())


def test_more_features_than_tokens_are_full_rank():
    assert mixer(features=20).feature_dim == 9 and mixer().feature_dim == 4


def test_what_the_losses_read():
    made = mixer()
    assert not made.comparable and not made.averages and made.centroids == made.width == 0


def test_refusals():
    made = mixer()
    with pytest.raises(ValueError, match=r"^a text of 10 tokens is longer than mixer\.length=9$"):
        made(*draw(10), SCALING)
    with pytest.raises(ValueError, match="no memory"):
        made(*draw(5), SCALING, None, object())
    for change, named in (
        ({"features": 0}, "features=0"),
        ({"length": 0}, "length=0"),
        ({"length": 2.5}, "length=2.5"),
    ):
        with pytest.raises(ValueError, match=rf"^mixer\.{named}[^\n]*$"):
            build_mixer(SHAPE, OPTIONS | change, causal=False)
    for change in ({"window": 3}, {"key_weight": "none"}):
        with pytest.raises(ValueError, match=r"^mixer\.\w+ is unknown to mixer=linformer; it takes features, length$"):
            build_mixer(SHAPE, OPTIONS | change, causal=False)
    with pytest.raises(ValueError, match=r"^mixer=linformer: projecting along the sequence mixes later tokens"):
        build_mixer(SHAPE, OPTIONS, causal=True)
    assert isinstance(build_mixer(SHAPE, OPTIONS, causal=False), Linformer)
