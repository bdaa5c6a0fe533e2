"""What things cost: the sizes exactly, the times by a clock that the test holds."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.measure import cost, steps, turns
from distill.measure.subject import NotMeasured, Subject
from distill.pretrain import in_all
from distill.student import build_student

from . import tiny
from .families import DECODERS, configuration
from .test_teacher import load

CPU = torch.device("cpu")


@pytest.fixture(params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest, teachers: dict[str, Path], tmp_path: Path) -> Any:
    teacher = load(teachers[request.param])
    student = build_student(teacher, tiny.MIXER).eval()
    (tmp_path / "measurements").mkdir()
    headline = {"tokens": {"attention": 100, "logits": 1000}, "seconds": {"attention": 1.0, "logits": 2.0}}
    (tmp_path / "measurements/headline.json").write_text(json.dumps(headline))
    config: Any = SimpleNamespace(
        measure=SimpleNamespace(cost=SimpleNamespace(longest=256)),
        trainer={"precision": "32-true"},
        teacher=SimpleNamespace(path=str(teachers[request.param])),
        stages=SimpleNamespace(logits=SimpleNamespace(cache=None, gradient_checkpointing=False, train="all")),
        mixer={},
    )

    class Timed:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    run: Any = SimpleNamespace(path=tmp_path, timed=lambda name: Timed())
    return Subject(teacher, student, tiny.corpus(2), config, run, CPU)


def family(subject: Subject) -> str:
    return subject.teacher.model.config.model_type


def test_lengths_end_with_learned_positions_and_not_with_rotary_ones(subject: Subject):
    assert cost.lengths_of(subject) == ([64] if family(subject) == "gpt2" else [128, 256])
    # Nor further than a mixer is made for.
    subject.config.mixer["length"] = 100
    assert cost.lengths_of(subject) == ([64] if family(subject) == "gpt2" else [100])


def test_what_is_kept(subject: Subject):
    """Keys and values of every token; a state, at any length."""
    found = cost.measure_cost(subject)
    heads, width = 2, 8
    assert found["kept_bytes"]["teacher"] == [2 * 2 * heads * width * length * 4 for length in found["contexts"]]
    cache = subject.student.new_cache()
    subject.student(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    assert set(found["kept_bytes"]["student"]) == {cache.nbytes}
    assert all(value > 0 for name in ("prefill", "decode") for who in found[name].values() for value in who)
    assert found["peak_bytes"] is None and found["hardware"].endswith(("CPU core", "CPU cores"))


def test_operations_are_two_for_each_weight_that_a_token_meets(subject: Subject):
    model = subject.teacher.model
    linear = {"gpt2": 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64), "llama": 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 24)}
    head = tiny.VOCABULARY * model.config.hidden_size
    assert cost.flops_per_token(subject.student) == 2 * (linear[family(subject)] + head)
    found = cost.measure_cost(subject)
    each = found["flops_per_token"]
    assert found["flops"] == {"attention": 100 * each, "logits": 4 * 1000 * each}


@pytest.mark.parametrize(
    ("wanted", "times"),
    [
        ({}, 1 + 3),
        ({"train": "lora"}, 1 + 2),
        ({"cache": "folder"}, 3),
        ({"gradient_checkpointing": True}, 1 + 4),
        ({"train": "mixers", "cache": "folder", "gradient_checkpointing": True}, 3),
    ],
)
def test_what_a_token_takes_is_by_what_is_done(subject: Subject, wanted: dict[str, Any], times: int):
    vars(subject.config.stages.logits).update(wanted)
    assert cost.passes(subject)["logits"] == times


def test_weights_are_cast_as_often_for_a_frozen_model_as_for_a_trained_one(subject: Subject):
    """Autocast's cache keeps the weights that are trained: the teacher, frozen, would be timed with more work."""
    subject.config.trainer["precision"] = "bf16-mixed"
    with cost.precision(subject):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def test_the_median_of_rounds_counts_and_the_first_does_not(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    subject.config.measure.cost.longest = 64
    took = {"teacher": [9.0, 9.0, 1.0, 5.0, 2.0], "student": [9.0, 9.0, 7.0, 3.0, 8.0]}
    now = 0.0

    def reading(model: Any, length: int, subject: Subject) -> Any:
        taken = iter(took["student" if model is subject.student else "teacher"])

        def step() -> None:
            nonlocal now
            now += next(taken)

        return step

    monkeypatch.setattr(cost, "reading", reading)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert cost.measure_cost(subject)["prefill"] == {"teacher": [2.0], "student": [7.0]}


def fail(subject: Subject, monkeypatch: pytest.MonkeyPatch, name: str, least: int, error: RuntimeError) -> None:
    """Let there be no memory for a student's step of this kind, for so many tokens or more."""
    make = getattr(cost, name) if name == "reading" else steps.STEP_OF["student"]

    def reading(model: Any, length: int, given: Subject) -> Any:
        def step() -> Any:
            if length >= least and model is subject.student:
                raise error
            return make(model, length, given)()

        return step

    def decoding(model: Any, batch: int, length: int) -> Any:
        if length >= least:
            raise error
        return make(model, batch, length)

    if name == "reading":
        monkeypatch.setattr(cost, "reading", reading)
    else:
        monkeypatch.setitem(steps.STEP_OF, "student", decoding)


@pytest.mark.parametrize("name", ["reading", "decoding"])
def test_it_ends_before_the_length_that_there_is_no_memory_for(subject: Subject, monkeypatch, name: str):
    lengths = [16, 32, 64]
    monkeypatch.setattr(cost, "SHORTEST", 16)
    subject.config.measure.cost.longest = 64
    fail(subject, monkeypatch, name, lengths[-1] - 1, torch.OutOfMemoryError())
    found = cost.measure_cost(subject)
    assert found["wanted"] == lengths and found["contexts"] == lengths[:-1]
    for part in ("prefill", "decode", "kept_bytes"):
        assert all(len(values) == len(found["contexts"]) for values in found[part].values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_without_memory_for_the_shortest_there_is_nothing_to_tell(subject: Subject, monkeypatch, error: RuntimeError):
    fail(subject, monkeypatch, "reading", 0, error)
    with pytest.raises(NotMeasured, match="no memory to read"):
        cost.measure_cost(subject)
    monkeypatch.setattr(turns, "out_of_memory", lambda error: False)
    with pytest.raises(type(error)):
        cost.measure_cost(subject)


def test_a_teacher_of_few_positions_decodes_too(subject: Subject):
    subject.config.measure.cost.longest = 4
    found = cost.measure_cost(subject)
    assert found["contexts"] == [4] and all(len(seconds) == 1 for seconds in found["decode"].values())


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_every_familys_teacher_keeps_what_its_own_cache_would(family: str):
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(configuration(family, DECODERS[family])).eval()
    step, kept = steps.teacher_step(teacher, 1, 19)
    cache = teacher(input_ids=steps.tokens(teacher, 1, 20), use_cache=True).past_key_values
    assert step().logits.isfinite().all()
    assert kept == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("content", ["{", "[]", '{"tokens": 1}'])
def test_what_a_teacher_took_and_cannot_be_read_is_not_known(tmp_path: Path, content: str):
    (tmp_path / cost.TRAINING).write_text(content)
    assert cost.training(str(tmp_path)) is None


def test_what_the_teacher_took_is_told_where_it_is_known(subject: Subject, tmp_path: Path):
    assert cost.measure_cost(subject)["teacher_training"] is None
    config: Any = SimpleNamespace(**vars(subject.config) | {"teacher": SimpleNamespace(path="pocket")})
    assert cost.measure_cost(replace(subject, config=config))["teacher_training"]["tokens"] == 2400 * 16 * 1024


def test_what_a_teacher_took_that_began_with_another(tmp_path: Path):
    """All of it, or that nobody knows it."""
    wanted: Any = SimpleNamespace(path=str(tmp_path))
    took = {"tokens": 10, "seconds": 2.0, "hardware": "this"}
    assert in_all(took, wanted) == took | {"beyond": str(tmp_path)}
    (tmp_path / cost.TRAINING).write_text(json.dumps({"tokens": 5, "seconds": 1.5, "hardware": "that"}))
    assert in_all(took, wanted) == {"tokens": 15, "seconds": 3.5, "hardware": "this"}
    (tmp_path / cost.TRAINING).write_text(json.dumps(took | {"beyond": "bert"}))
    assert in_all(took, wanted) == {"tokens": 20, "seconds": 4.0, "hardware": "this", "beyond": "bert"}
