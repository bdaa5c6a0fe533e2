"""A loss or a gradient that is not a number stops the run before it reaches the weights."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.errors import UserError
from distill.pipeline import distil
from distill.stages.callbacks import NumberGuard

from .conftest import Compose
from .test_stages import Run

#: Checkpoints are written every quarter: the newest before is that of step 4.
STEPS, BAD = 8, 6
EIGHT = [f"stages.{stage}.max_steps={STEPS}" for stage in ("attention", "logits")]


def spoil_weight(parameter: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.view(-1)[0] = torch.nan


def spoil_gradient(parameter: torch.Tensor) -> None:
    parameter.register_hook(lambda gradient: gradient * torch.nan)


def before_step(stage: Any, spoil: Callable[[], Any]) -> Any:
    stage.on_train_batch_start = lambda batch, index: spoil() if index == BAD - 1 else None
    return stage


def stopped(run: Run, stage: Any, name: str) -> str:
    """The message, once it is clear that the last good state was kept."""
    with pytest.raises(UserError, match=rf"^stage {name}, step {BAD}: [^\n]*$") as raised:
        run.fit(stage, name)
    message = str(raised.value)
    kept = Path(re.search(r"checkpoint: (.*\.ckpt)", message)[1])
    assert kept == run.directory.checkpoints / f"{name}-step=4.ckpt"
    state = torch.load(kept, weights_only=False)["state_dict"]
    assert all(each.isfinite().all() for each in state.values())
    stage.load_state_dict(state)
    assert "learning rate" in message
    return message


@pytest.fixture
def run(small: Compose, teachers: dict[str, Path]) -> Run:
    return Run(small(*EIGHT), teachers["gpt2"])


def test_a_weight_of_a_mixer_names_its_layer(run: Run):
    stage = run.attention()
    parameter = next(run.student.mixers[1].parameters())
    assert "layer 1" in stopped(run, before_step(stage, lambda: spoil_weight(parameter)), "attention")


def test_a_loss_of_stage_1_names_its_layer(run: Run):
    stage, layer_loss = run.attention(), run.attention().layer_loss

    def spoiled(mixer, *args):
        return layer_loss(mixer, *args) * (torch.nan if mixer is run.student.mixers[0] else 1)

    stage = before_step(stage, lambda: setattr(stage, "layer_loss", spoiled))
    assert "layer 0" in stopped(run, stage, "attention")


def test_a_loss_of_the_first_of_several_batches_of_a_step_is_found(small: Compose, teachers: dict[str, Path]):
    run = Run(small(*EIGHT, "trainer.accumulate_grad_batches=2"), teachers["gpt2"])
    stage, layer_loss = run.attention(), run.attention().layer_loss

    def begin(batch: Any, index: int) -> None:
        factors = {run.student.mixers[1]: torch.nan} if index == 2 * (BAD - 1) else {}
        stage.layer_loss = lambda mixer, *args: layer_loss(mixer, *args) * factors.get(mixer, 1)

    stage.on_train_batch_start = begin
    assert "the loss of layer 1 is not a number" in stopped(run, stage, "attention")


def test_a_gradient_of_stage_1_names_its_parameter(run: Run):
    stage = run.attention()
    name, parameter = list(stage.named_parameters())[-1]
    assert name in stopped(run, before_step(stage, lambda: spoil_gradient(parameter)), "attention")


def test_a_loss_of_stage_2(run: Run, monkeypatch: pytest.MonkeyPatch):
    stage, logits = run.logits(), run.teacher.predict
    stage = before_step(stage, lambda: setattr(run.teacher, "predict", lambda batch: logits(batch) * torch.inf))
    assert "logits" in stopped(run, stage, "logits")


@pytest.mark.parametrize("name", ["h.1.attn.c_attn.weight", "h.0.ln_1.bias"])
def test_a_gradient_of_stage_2_names_its_parameter(run: Run, name: str):
    stage = run.logits()
    parameter = stage.get_parameter(f"student.lm.transformer.{name}")
    assert name in stopped(run, before_step(stage, lambda: spoil_gradient(parameter)), "logits")


def test_a_weight_of_stage_2_names_its_layer(run: Run):
    stage = run.logits()
    parameter = stage.get_parameter("student.lm.transformer.h.1.mlp.c_fc.weight")
    assert "h.1." in stopped(run, before_step(stage, lambda: spoil_weight(parameter)), "logits")


def test_a_gradient_that_is_infinite_stops_as_well(run: Run):
    stage = run.attention()
    parameter = next(run.student.mixers[1].parameters())
    spoil = before_step(stage, lambda: parameter.register_hook(lambda gradient: gradient + torch.inf))
    assert "mixers.1." in stopped(run, spoil, "attention")


def test_gradients_of_float16_are_the_scalers_affair():
    """It skips their step. What was looked at is not looked at again."""
    module = torch.nn.Linear(1, 1)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    module.losses = {"logits": torch.ones(())}
    guard = NumberGuard("logits", Path("nowhere"))

    def step(**precision: Any) -> None:
        trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(**precision), global_step=0)
        guard.on_train_batch_start(trainer, module, {}, 0)
        guard.on_before_backward(trainer, module, torch.ones(()))
        guard.on_before_optimizer_step(trainer, module, None)

    step(scaler=object())
    assert not guard.seen
    with pytest.raises(UserError, match="gradient of weight is not a number"):
        step()


def test_a_whole_run_that_diverges_is_stopped(small: Compose, tmp_path: Path):
    """No student is left behind that someone might take for one."""
    with pytest.raises(UserError, match=r"^stage logits, step \d: .* learning rate"):
        distil(small("stages.logits.learning_rate=1e30", *EIGHT))
    assert not (tmp_path / "run" / "student").exists() and not (tmp_path / "run" / "report").exists()
    newest = max((tmp_path / "run" / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    state = torch.load(newest, weights_only=False)["state_dict"]
    assert all(each.isfinite().all() for each in state.values())
