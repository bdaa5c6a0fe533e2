"""Layers that are kept softmax: their attention, and a model that has both kinds."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from distill.flexformer.cache import ExactLayer
from distill.flexformer.exact import exact_attention
from distill.flexformer.feature_map import HeadShape

from . import reference
from .examples import draw
from .tiny import KINDS, padding, student, tokens

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = {"grouped": HeadShape(4, 2, 4), "one to one": HeadShape(3, 3, 4)}


def masks(side: str, length: int) -> Tensor | None:
    """The second row misses a third of its tokens."""
    if side == "none":
        return None
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, : length // 3] = 0
    return mask if side == "left" else mask.flip(1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("new", [9, 4, 1])
def test_it_is_softmax(shape: HeadShape, side: str, new: int):
    """Whole texts, and their last tokens alone against keys that are remembered."""
    q, k, v, *_ = draw(0, 9, shape=shape)
    mask = masks(side, 9)
    found = exact_attention(q[:, :, -new:], k, v, 0.4, mask)
    expected = reference.softmax(q[:, :, -new:], k, v, mask, scaling=0.4)
    torch.testing.assert_close(found, expected, **EXACT)


def test_nothing_but_padding_is_a_number():
    q, k, v, *_ = draw(0, 5)
    out = exact_attention(q.requires_grad_(), k, v, 0.4, torch.zeros(2, 5))
    out.sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("new", [6, 1])
def test_a_mask_that_hides_nothing_leaves_the_fast_path(new: int, monkeypatch: pytest.MonkeyPatch):
    """`generate` always gives a mask, and with one there is no flash attention."""
    given = []

    def watched(*args: Tensor, **kwargs: Any) -> Tensor:
        given.append(kwargs.get("attn_mask"))
        return scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr("distill.flexformer.exact.scaled_dot_product_attention", watched)
    model, ids, cache = student("llama", exact=[0]), tokens(2, 6), None
    if new == 1:
        cache = model.new_cache()
        model(ids[:, :5], past_key_values=cache)
    given.clear()
    model(ids[:, -new:], torch.ones(2, 6), past_key_values=cache)
    model(ids, padding("left", 2, 6))
    assert [mask is None for mask in given] == [True, False]


@torch.no_grad()
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_layers_exact_are_the_teacher(family: str, side: str):
    model = student(family, exact=[0, 1])
    assert model.mixers == {} and not any(".mixer." in name for name in model.state_dict())
    ids, mask = tokens(3, 9), padding(side, 3, 9)
    real = slice(None) if mask is None else mask.bool()
    found = model(ids, mask).logits
    model.lm.set_attn_implementation("sdpa")
    torch.testing.assert_close(found[real], model.lm(ids, attention_mask=mask).logits[real], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_layers_exact_write_what_the_teacher_does(family: str):
    model = student(family, seed=2, exact=[0, 1])
    ids, mask = tokens(2, 6), padding("left", 2, 6)
    given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "num_beams": 2}
    found = model.generate(ids * mask, **given)
    model.lm.set_attn_implementation("sdpa")
    assert torch.equal(found, model.lm.generate(ids * mask, **given))


@pytest.mark.parametrize("exact", [[], [0], [1], [0, 1]])
def test_the_named_layers_are_kept(exact: list[int]):
    model = student("llama", exact=exact)
    assert list(model.mixers) == [i for i in range(2) if i not in exact]
    assert [isinstance(layer, ExactLayer) for layer in model.new_cache().memories] == [i in exact for i in range(2)]
    for i, module in enumerate(KINDS["llama"].module.format(i) for i in range(2)):
        assert hasattr(model.lm.get_submodule(module), "mixer") == (i not in exact)
