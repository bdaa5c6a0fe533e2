"""Models compute the same by a shortcut as without, and are what they were once a stage is over."""

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flexformer.interpreted import DEVICE
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation, NewGELUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.moshi.modeling_moshi import MoshiRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from distill.remembered import Remembered
from distill.stages import fit
from distill.stages.logits import LogitsStage
from distill.stages.shortcuts import AlignedLinear, FusedRmsNorm, NarrowRmsNorm, TanhGelu, aligned, shortcuts

from .conftest import Compose
from .test_stages import Run


class Packed(nn.Linear):
    """As the weights of a quantised model are."""


def both_ways(out: Tensor, given: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weight).sum(), given)]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_an_activation(name: str):
    before, x = ACT2FN[name], (3 * torch.randn(200, dtype=torch.float64)).requires_grad_()
    model = nn.Sequential(before)
    expected = both_ways(model(x), [x])
    # The constants of gelu_fast are shorter.
    rounded = {"gelu_new": 1e-9, "gelu_fast": 1e-7}[name]
    with shortcuts([model]):
        assert type(model[0]) is TanhGelu
        torch.testing.assert_close(both_ways(model(x), [x]), expected, rtol=0, atol=rounded)
    assert type(model[0]) is type(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 63, 64, 65])
def test_a_product_is_aligned(width: int, bias: bool):
    x, weight = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(width, 7, dtype=torch.float64)
    given = [each.requires_grad_() for each in (x, weight, *([torch.randn(width).double()] if bias else []))]
    found = aligned(*given, *([] if bias else [None]))
    assert found.stride(-2) == -(-width // 64) * 64
    torch.testing.assert_close(both_ways(found, given), both_ways(F.linear(*given), given))


def test_heads_are_aligned_of_which_it_is_worth_it():
    """Where rows are multiples of eight, products are fast already."""
    parts = [*(nn.Linear(4, width) for width in (1025, 1032, 1023)), Packed(4, 1025), GELUActivation()]
    model = nn.Sequential(*parts).to(DEVICE)
    other, odd, before = copy.deepcopy(model), model[0], [type(each) for each in parts]
    with shortcuts([model, other]):
        for each in (model, other):
            assert [type(part) for part in each] == [AlignedLinear, *before[1:]]
        assert model.state_dict().keys() == other.state_dict().keys()
        x = torch.randn(3, 4, device=DEVICE)
        torch.testing.assert_close(odd(x), F.linear(x, odd.weight, odd.bias))
        # On a processor as ever.
        assert odd(x).stride(0) == (1088 if x.is_cuda else 1025)
    for each in (model, other):
        assert [type(part) for part in each] == before


def test_a_stage_that_breaks_off_leaves_models_as_they_were():
    model = nn.Sequential(nn.Linear(4, 1025))
    with pytest.raises(RuntimeError, match="broken"), shortcuts([model]):
        raise RuntimeError("broken")
    assert type(model[0]) is nn.Linear


def activations(model: nn.Module) -> list[nn.Module]:
    return [each for each in model.modules() if type(each) is NewGELUActivation]


@pytest.mark.parametrize("stage", ["attention", "logits", "remembered"])
def test_a_stage_takes_them(
    stage: str, small: Compose, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the teacher, and in the student where that runs."""
    run = Run(small("stages.attention.max_steps=1", "stages.logits.max_steps=1"), teachers["gpt2"])
    called, forward = set(), TanhGelu.forward

    def told(module: Any, x: Tensor) -> Tensor:
        called.add(module)
        return forward(module, x)

    def remembered() -> LogitsStage:
        # Of nothing yet: the teacher is asked.
        kept = Remembered(run.teacher, tmp_path / "kept", 8, "32-true")
        return LogitsStage(run.teacher, run.student, run.config.stages.logits, kept)

    monkeypatch.setattr(TanhGelu, "forward", told)
    made = {"attention": run.attention, "logits": run.logits, "remembered": remembered}[stage]
    run.fit(made(), "attention" if stage == "attention" else "logits")
    teacher, student = activations(run.teacher.model), activations(run.student)
    # Stage 1 is over with what goes into the teacher's last attention.
    assert called == set(teacher[:-1] if stage == "attention" else teacher + student)


def test_what_is_dealt_out_takes_them(small: Compose, teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """And not what it is made of, which does not run."""
    run, took = Run(small("stages.logits.max_steps=1"), teachers["gpt2"]), list[nn.Module]()

    def told(models: list[nn.Module]) -> AbstractContextManager[None]:
        took.extend(models)
        return shortcuts(models)

    monkeypatch.setattr(fit, "shortcuts", told)
    # On one device, where nothing has to be dealt out.
    monkeypatch.setattr(fit, "Sharded", object)
    run.fit(run.logits(), "logits")
    assert len(took) == 2 and not {*took} & {run.teacher.model, run.student}


class BesideRMSNorm(LlamaRMSNorm):
    """ε is added to the root."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        size = hidden_states.square().mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (size + self.variance_epsilon)


class LargerRMSNorm(LlamaRMSNorm):
    """By a twentieth."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 1.05 * super().forward(hidden_states)


class WiderRMSNorm(LlamaRMSNorm):
    """Of more digits than either."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states).double()


class GatedRMSNorm(LlamaRMSNorm):
    """Of two things, if there are two."""

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class BiasedRMSNorm(LlamaRMSNorm):
    """Which is nothing at first."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.bias


class ClampedRMSNorm(LlamaRMSNorm):
    """The same of what is small."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.clamp(-1, 1))


class EmptyRMSNorm(LlamaRMSNorm):
    """Of which nothing can be told as it is drawn."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


class GroupRMSNorm(LlamaRMSNorm):
    """Of something that a shortcut is not tried with."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, heads, length, width = hidden_states.shape
        return super().forward(hidden_states.view(batch, heads, length, width))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [LlamaRMSNorm, Olmo2RMSNorm, MoshiRMSNorm])
def test_a_norm(norm: type[nn.Module], dtype: torch.dtype, weights: torch.dtype):
    """Of the dtype that it was of, in mixed precision, too; families call ε by two names."""
    module = norm(9, eps=0.3).to(DEVICE, weights)
    nn.init.normal_(module.weight)
    given = [torch.randn(2, 5, 9, dtype=dtype, device=DEVICE).requires_grad_(), module.weight]
    model = nn.Sequential(module)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected = both_ways(model(given[0]), given)
        with shortcuts([model]):
            assert type(module) in (FusedRmsNorm, NarrowRmsNorm)
            found = both_ways(model(given[0]), given)
    assert type(module) is norm
    narrow = torch.bfloat16 in (dtype, weights)
    torch.testing.assert_close(found, expected, **({"rtol": 2e-2, "atol": 2e-2} if narrow else {}))


@pytest.mark.parametrize(
    "norm",
    [
        nn.RMSNorm,
        GemmaRMSNorm,
        BesideRMSNorm,
        LargerRMSNorm,
        WiderRMSNorm,
        GatedRMSNorm,
        BiasedRMSNorm,
        ClampedRMSNorm,
        EmptyRMSNorm,
        GroupRMSNorm,
    ],
)
def test_what_is_only_called_a_norm(norm: type[nn.Module]):
    """Gemma's weights are taken from 1; and PyTorch's own is one kernel already."""
    module, head = norm(9, eps=1e-6), nn.Linear(1, 1025)
    nn.init.zeros_(module.weight) if norm is EmptyRMSNorm else nn.init.normal_(module.weight)
    with shortcuts([nn.Sequential(head, module)]):
        assert type(module) is norm and type(head) is AlignedLinear
    assert type(head) is nn.Linear
