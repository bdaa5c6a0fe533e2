"""A student is handed on if all ways through it agree, and only then."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distill import parity as gate
from distill.errors import UserError
from distill.parity import Apart, parity
from distill.pipeline import distil
from distill.student import build_student
from distill.task import TASKS

from . import tiny
from .conftest import Compose
from .test_teacher import load

CPU = torch.device("cpu")
CAUSAL = TASKS["causal_lm"]
MIXERS: dict[str, dict[str, Any]] = {
    "exponential": {},
    "window": {"window": 4, "key_weight": "quadratic"},
    "decay": {"decay": "gated", "decay_groups": 2},
    "delta": {"decay": "delta", "window": 4},
    "exact": {"exact_layers": [0]},
}


@pytest.fixture(params=MIXERS)
def student(request: pytest.FixtureRequest, teachers: dict[str, Path]) -> Any:
    return build_student(load(teachers["llama"]), tiny.MIXER | MIXERS[request.param])


@pytest.fixture
def saved(student: Any, tmp_path: Path) -> Path:
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def measured(student: Any, folder: Path) -> dict[str, float]:
    return parity(student, folder, tiny.corpus(2), CAUSAL, CPU)


def test_all_ways_agree(student: Any, saved: Path):
    found = measured(student, saved)
    assert list(found) == ["reloaded", "parallel", "recurrent"] and found["reloaded"] == 0
    assert all(value < 1e-5 for value in found.values())
    # And the student goes its own way again.
    assert all("forward" not in vars(mixer) for mixer in student.mixers.values())


@pytest.mark.parametrize("way", ["parallel", "recurrent"])
def test_one_that_differs_is_named(student: Any, saved: Path, way: str):
    def spoilt(right: Any) -> Any:
        def wrong(*given: Any, **more: Any) -> Any:
            weighted, state = right(*given, **more)
            return weighted._replace(sums=weighted.sums * torch.linspace(0.9, 1.1, weighted.sums.shape[-1])), state

        return wrong

    for mixer in student.mixers.values():
        mixer.ways = mixer.ways._replace(**{way: spoilt(getattr(mixer.ways, way))})
    with pytest.raises(Apart, match=f"read whole: {way} by"):
        measured(student, saved)


def test_what_was_saved_is_what_is_held_against_it(student: Any, saved: Path):
    with torch.no_grad():
        student.lm.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(Apart, match="reloaded by"):
        measured(student, saved)


def test_what_is_no_number_is_no_agreement(student: Any, tmp_path: Path):
    with torch.no_grad():
        student.lm.get_output_embeddings().weight[0, 0] = torch.nan
    student.save_pretrained(tmp_path / "nan")
    with pytest.raises(Apart, match="reloaded by nan"):
        measured(student, tmp_path / "nan")


def test_a_student_that_is_not_fit_is_not_handed_on(small: Compose, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "MOST", -1.0)
    config = small()
    with pytest.raises(UserError, match=r"student\.unfinished is not fit to be served: .*reloaded by 0"):
        distil(config)
    run = Path(config.run_dir)
    assert not (run / "student").exists() and (run / "student.unfinished/model.safetensors").exists()
    assert (run / "measurements/headline.json").exists()


def test_the_difference_is_a_share_of_what_is_different():
    wide = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    assert gate.difference(wide + 1, wide) == pytest.approx(1 / 5**0.5)
