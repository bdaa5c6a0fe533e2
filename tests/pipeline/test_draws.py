"""Frequencies that are not learned: drawn anew in training, or frozen at the draw."""

from pathlib import Path

import pytest
import torch

from .conftest import MIXERS, Compose, sized
from .test_stages import Run, of_mixers


@pytest.fixture
def run(small: Compose, teachers: dict[str, Path]):
    return lambda *overrides: Run(small(*overrides), teachers["gpt2"])


def frequencies(made: Run) -> dict[str, torch.Tensor]:
    """What is frozen or drawn: all that a mixer keeps and does not learn."""
    return {
        f"{layer}.{name}": each for layer, mixer in made.student.mixers.items() for name, each in mixer.named_buffers()
    }


@pytest.mark.parametrize("stage", ["attention", "logits"])
@pytest.mark.parametrize(
    ("every", "draws"), [(2, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), (0, [1] * 10), (9, [1] * 10), (8, [1] * 8 + [2] * 2)]
)
def test_features_are_drawn_anew_as_often_as_asked_for_and_settle(run, stage: str, every: int, draws: list[int]):
    weight = "mixer.key_weight=quadratic"
    made = run(*sized("favor"), weight, f"mixer.redraw_every={every}", f"stages.{stage}.max_steps=10")
    trained, seen = getattr(made, stage)(), []
    trained.on_train_batch_start = lambda *args: seen.append({n: each.clone() for n, each in frequencies(made).items()})
    made.fit(trained, stage)
    for name, last in frequencies(made).items():
        distinct = {tuple(each[name].flatten().tolist()): None for each in seen}
        assert [list(distinct).index(tuple(each[name].flatten().tolist())) + 1 for each in seen] == draws
        assert torch.equal(last, seen[-1][name])


@pytest.mark.parametrize("name", [name for name in MIXERS if "frozen" in name])
def test_frozen_frequencies_move_in_neither_stage(run, name: str):
    """Not even where all weights are trained; everything else of the mixers is."""
    made = run(*sized(name), "mixer.key_weight=quadratic", "stages.logits.train=all")
    kept = frequencies(made)
    names = {f"{made.teacher.layers[int(key.split('.')[0])]['module']}.mixer.{key.split('.', 1)[1]}" for key in kept}
    frozen = {f"lm.{each}" for each in names}
    made.fit(made.attention(), "attention")
    assert made.changed(made.student) == of_mixers(made.before) - frozen
    stage = made.logits()
    made.fit(stage, "logits")
    assert made.changed(stage.finished()) == made.before.keys() - frozen
