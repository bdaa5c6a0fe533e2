"""Stages whose models the compiler fuses learn the same, and leave models as they were."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.flexformer.attempt import LINEAR, PYTORCH, NoKernels
from distill.stages.compiled import COMPILER, WHAT, compiled
from distill.stages.graphs import BEFORE, GRAPH
from distill.stages.language import LanguageStage

from .conftest import Compose, sized
from .test_graphs import ON_GPU
from .test_stages import Run

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch's compiler is trusted on a GPU alone")
STEPS = BEFORE + 3
LEARNS = [
    "stages.logits.learning_rate=2e-3",
    *(f"stages.{stage}.max_steps={STEPS}" for stage in ("pretrain", "attention", "logits")),
]
KINDS: dict[str, list[str]] = {
    "as it is": [],
    "mixed precision": ["trainer.precision=bf16-mixed"],
    "layers computed again": ["stages.logits.gradient_checkpointing=true"],
    "adapters": ["stages.logits.train=lora"],
}


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that is compiled, by PyTorch's own kernels."""
    made: list[Any] = []
    eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return made


def language(run: Run) -> LanguageStage:
    stage = LanguageStage(run.teacher.model, run.config.stages.pretrain)
    stage.model.eval()
    return stage


def losses(run: Run, stage: str) -> torch.Tensor:
    run.fit({"logits": run.logits, "pretrain": partial(language, run), "attention": run.attention}[stage](), stage)
    return torch.tensor([line["loss"] for line in run.metrics()])


def either(make: Any, path: Path, stage: str, *overrides: str) -> list[torch.Tensor]:
    """Losses with what is compiled, and without."""
    found = []
    for wanted in (True, False):
        run = make(*LEARNS, *overrides, f"compile={wanted}", f"run_dir={path / str(wanted)}")
        found.append(losses(run, stage))
        told = run.directory.ways[stage]
        assert (told.get(WHAT) == [COMPILER]) is wanted
        if stage == "logits" and not torch.cuda.is_available():
            assert told[LINEAR] == [PYTORCH]
    assert len(found[0]) == STEPS and found[0].unique().numel() == STEPS
    return found


@pytest.mark.parametrize(
    ("mixer", "kind"),
    [*(("exponential-window", kind) for kind in KINDS if KINDS[kind]), ("exponential-decay", "as it is")],
)
def test_a_student_learns_the_same(
    mixer: str, kind: str, small: Compose, teachers: dict[str, Path], tmp_path: Path, graphs: list[Any]
):
    runs = []

    def make(*overrides: str) -> Run:
        runs.append(Run(small(*overrides), teachers["gpt2"]))
        return runs[-1]

    found = either(make, tmp_path, "logits", *sized(mixer), *KINDS[kind])
    torch.testing.assert_close(*found, rtol=1e-2 if kind == "mixed precision" else 1e-5, atol=0)
    # The teacher and the student, each whole, and nothing of the run without.
    assert len(graphs) == 2
    for model in (runs[0].teacher.model, runs[0].student):
        assert not any("_compiled_call_impl" in vars(each) for each in model.modules())


def test_a_teacher_learns_the_same(small: Compose, teachers: dict[str, Path], tmp_path: Path, graphs: list[Any]):
    found = either(lambda *given: Run(small(*given), teachers["gpt2"]), tmp_path, "pretrain")
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)
    assert len(graphs) == 1


def test_kernels_that_cannot_be_used_are_one_line(graphs: list[Any]):
    with pytest.raises(UserError, match=r"^compile=true: .*: none here; leave it out$"), compiled([Twice()]):
        raise NoKernels("none here")


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_what_the_compiler_cannot_make_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def refused(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no room\nin a cache")

    model = Twice()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=refused))
    with pytest.raises(UserError, match=r"^compile=true: .*no room.*; leave it out$") as told, compiled([model]):
        model(torch.ones(1, 2))
    assert "\n" not in str(told.value) and "_compiled_call_impl" not in vars(model)


@gpu
@pytest.mark.parametrize(
    ("mixer", "kind"),
    [
        *(("exponential-window", kind) for kind in KINDS),
        *((mixer, "as it is") for mixer in ("exponential", "exponential-decay", "stationary")),
    ],
)
def test_what_is_fused_for_a_gpu_learns_the_same(
    mixer: str, kind: str, small: Compose, teachers: dict[str, Path], tmp_path: Path
):
    ways = []

    def make(*overrides: str) -> Run:
        ways.append(Run(small(*overrides), teachers["gpt2"]))
        return ways[-1]

    found = either(make, tmp_path, "logits", *sized(mixer), *ON_GPU, *KINDS[kind])
    torch.testing.assert_close(*found, rtol=2e-2 if kind == "mixed precision" else 3e-3, atol=0)
    steps = ways[0].directory.ways["logits"].get("steps", [])
    assert (GRAPH in steps) == (kind != "layers computed again")
