"""Models compute the same by a shortcut as without, and are what they were once a stage is over."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation, NewGELUActivation

from distill import divergence
from distill.stages.shortcuts import AlignedLinear, TanhGelu, aligned, shortcuts

from .conftest import Compose
from .test_stages import Run


def grown(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weight).sum(), of)]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_an_activation(name: str):
    slow, x = ACT2FN[name], (3 * torch.randn(200, dtype=torch.float64)).requires_grad_()
    model = nn.Sequential(slow)
    expected = grown(model(x), [x])
    with shortcuts([model]):
        assert type(model[0]) is TanhGelu
        # The constants of gelu_fast are shorter.
        torch.testing.assert_close(grown(model(x), [x]), expected, rtol=0, atol=1e-9 if name == "gelu_new" else 1e-7)
    assert type(model[0]) is type(slow)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 63, 64, 65])
def test_a_product_is_aligned(width: int, bias: bool):
    x, weight = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(width, 7, dtype=torch.float64)
    given = [each.requires_grad_() for each in (x, weight, *([torch.randn(width).double()] if bias else []))]
    found = aligned(*given, *([] if bias else [None]))
    assert found.stride(-2) == -(-width // 64) * 64
    torch.testing.assert_close(grown(found, given), grown(F.linear(*given), given))


def test_heads_are_aligned_of_which_it_is_worth_it():
    odd, even, small = (nn.Linear(4, width) for width in (1025, 1024, 1023))
    model = nn.Sequential(odd, even, small, GELUActivation())
    other = copy.deepcopy(model)
    with shortcuts([model, other]):
        assert [type(each) for each in model] == [AlignedLinear, nn.Linear, nn.Linear, GELUActivation]
        assert model.state_dict().keys() == other.state_dict().keys() and isinstance(odd, nn.Linear)
        x = torch.randn(3, 4)
        assert torch.equal(odd(x), F.linear(x, odd.weight, odd.bias))
        assert torch.equal(copy.deepcopy(odd)(x), odd(x))
    assert {type(each) for each in (*model, *other)} == {nn.Linear, GELUActivation}


def test_what_became_another_class_in_between_stays_it():
    class Dealt(AlignedLinear):
        pass

    model = nn.Sequential(nn.Linear(4, 1025))
    with pytest.raises(RuntimeError, match="broken"), shortcuts([model]):
        model[0].__class__ = Dealt
        raise RuntimeError("broken")
    assert type(model[0]) is Dealt


def test_gradients_of_logits_begin_where_products_are_fast():
    like = torch.empty(2, 3, 70, device="meta")
    assert divergence.room(like, torch.float32).shape == like.shape


def slow(model: nn.Module) -> dict[nn.Module, None]:
    """In their order."""
    return {each: None for each in model.modules() if type(each) is NewGELUActivation}


@pytest.mark.parametrize("stage", ["attention", "logits"])
def test_a_stage_takes_them(stage: str, small: Compose, teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """In the teacher, and in the student where that runs."""
    run, called, forward = Run(small(f"stages.{stage}.max_steps=1"), teachers["gpt2"]), set(), TanhGelu.forward

    def told(module: Any, x: Tensor) -> Tensor:
        called.add(module)
        return forward(module, x)

    monkeypatch.setattr(TanhGelu, "forward", told)
    run.fit({"attention": run.attention, "logits": run.logits}[stage](), stage)
    teacher, student = slow(run.teacher.model), slow(run.student)
    # Stage 1 is over with what goes into the teacher's last attention.
    assert called == set([*teacher, *student] if stage == "logits" else [*teacher][:-1])
