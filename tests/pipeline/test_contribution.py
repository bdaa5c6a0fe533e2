"""What attention contributes: every control against the same thing written out, dense and in double precision."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.measure import sections
from distill.measure.contribution import WHOLE, measure_contribution
from distill.measure.replaced import CONTROLS, replaced
from distill.measure.subject import NotMeasured, Subject
from distill.rundir import RunDirectory
from distill.student import build_student
from distill.task import TASKS

from . import tiny
from .conftest import Compose
from .test_teacher import load

MIXER = tiny.MIXER | {"key_weight": "quadratic", "window": 5}
BLOCKS = 3


class Written(nn.Module):
    """Causal attention of which only the weights are said: (…, N, N) from q, k, scaled."""

    def __init__(self, weigh: Any):
        super().__init__()
        self.weigh = weigh

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, *_: Any) -> tuple[Tensor, None]:
        share = query.shape[1] // key.shape[1]
        query, key, value = query.double() * scaling**0.5, key.double() * scaling**0.5, value.double()
        weights = self.weigh(query, key).tril().repeat_interleave(share, 1)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
        return (weights @ value.repeat_interleave(share, 1)).float(), None


def ones(query: Tensor, key: Tensor) -> Tensor:
    return query.new_ones(*key.shape[:2], query.shape[2], key.shape[2])


def weighted(mixer: Any) -> Any:
    one, two = (each.double()[:, None] for each in mixer.key_weight.coefficients)
    return lambda query, key: ones(query, key) * (key * one + key**2 * two).sum(-1).exp()[:, :, None]


WRITTEN = {
    "zero": lambda mixer: Written(lambda query, key: 0 * ones(query, key)),
    "uniform": lambda mixer: Written(ones),
    "key_weight": lambda mixer: Written(weighted(mixer)),
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest, teachers: dict[str, Path]) -> Any:
    teacher = load(teachers[request.param])
    student = build_student(teacher, MIXER).eval()
    with torch.no_grad():
        for mixer in student.mixers.values():
            for parameter in mixer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    wanted = SimpleNamespace(batch_size=2, contribution=SimpleNamespace(blocks=BLOCKS))
    config: Any = SimpleNamespace(measure=wanted)
    return Subject(teacher, student, tiny.corpus(6), config, None, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "rows"), [("causal_lm", 2), ("sequence_classification", 4)])
def test_rows_of_one_target_each_are_counted_in_batches(subject: Subject, task: str, rows: int):
    teacher: Any = SimpleNamespace(task=TASKS[task])
    assert len(replace(subject, teacher=teacher).held_out("random", 2).dataset) == rows  # type: ignore[arg-type]


@torch.no_grad()
def nats(subject: Subject) -> float:
    """Mean −log p of the next token, over every other block of six."""
    rows = torch.stack([subject.corpus.validation["random"][i]["input_ids"] for i in (0, 2, 4)])
    logits = subject.student(input_ids=rows, use_cache=False).logits[:, :-1].double()
    return -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).mean().item()


def test_every_control_is_what_it_is_called(subject: Subject):
    found = measure_contribution(subject)
    layers = subject.student.mixers
    assert list(found["nats"]) == [WHOLE, "0", "1"] and found["blocks"] == {"random": BLOCKS}
    own = nats(subject)
    assert found["student"]["random"] == pytest.approx(own, abs=1e-6)
    for where, controls in found["nats"].items():
        chosen = [layer for layer in layers if where in (WHOLE, str(layer))]
        for name, build in WRITTEN.items():
            with replaced(subject.student, {layer: build(layers[layer]) for layer in chosen}):
                assert controls[name]["random"] == pytest.approx(nats(subject) - own, abs=2e-5), (where, name)
        for name in ("window", "linear"):
            for layer in chosen:
                layers[layer].parts = {name}
            expected = nats(subject) - own
            for layer in chosen:
                layers[layer].parts = {"window", "linear"}
            assert controls[name]["random"] == pytest.approx(expected, abs=1e-6), (where, name)
    assert abs(found["nats"][WHOLE]["zero"]["random"]) > 1e-3


def test_the_error_is_that_of_the_paired_difference(subject: Subject):
    found = measure_contribution(subject)
    rows = torch.stack([subject.corpus.validation["random"][i]["input_ids"] for i in (0, 2, 4)])

    @torch.no_grad()
    def each() -> Tensor:
        logits = subject.student(input_ids=rows, use_cache=False).logits[:, :-1].double()
        return -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1).mean(1)

    own = each()
    with replaced(subject.student, {0: WRITTEN["uniform"](None)}):
        gap = each() - own
    assert found["error"]["0"]["uniform"]["random"] == pytest.approx(gap.std().item() / BLOCKS**0.5, rel=1e-3)


def test_the_student_is_as_it_was(subject: Subject):
    mixers = dict(subject.student.mixers)
    before = nats(subject)
    measure_contribution(subject)
    with pytest.raises(RuntimeError), replaced(subject.student, {0: Written(ones)}):  # type: ignore[dict-item]
        raise RuntimeError
    assert all(subject.student.mixers[layer] is mixer for layer, mixer in mixers.items()) and nats(subject) == before


def test_a_mixer_without_parts_has_fewer_controls(teachers: dict[str, Path]):
    student = build_student(load(teachers["gpt2"]), tiny.MIXER)
    names = {name for name, control in CONTROLS.items() if control(student.mixers[0]) is not None}
    assert names == {"zero", "uniform"}


def test_what_cannot_be_measured_says_why(subject: Subject, small: Compose, tmp_path: Path, caplog: Any):
    exact = build_student(subject.teacher, MIXER | {"exact_layers": [0, 1]})
    with pytest.raises(NotMeasured, match="no layer was swapped"):
        measure_contribution(replace(subject, student=exact))
    config = small("report.sections=[contribution]")
    run = RunDirectory(config)
    run.create()

    def broken(subject: Subject) -> Any:
        raise ValueError("of no use")

    for measure, reason in (
        (measure_contribution, "no layer was swapped"),
        (broken, "measuring it failed with ValueError: of no use"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sections.MEASURES, "contribution", measure)
            sections.measure_sections(replace(subject, student=exact, config=config, run=run))
        assert f'"{reason}"' in (run.path / "measurements/contribution.json").read_text()
    sections.measure_sections(replace(subject, config=small("report.sections=[headline]"), run=run))
    assert "of no use" in (run.path / "measurements/contribution.json").read_text()
