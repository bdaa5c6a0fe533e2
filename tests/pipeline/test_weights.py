"""Weights as they are handed on: in fewer bits, in several files, with adapters merged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill.errors import UserError
from distill.pipeline import PIPELINES, distil
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import TASKS
from distill.teacher import load_teacher
from distill.weights import round_weights

from .conftest import Compose


def headline(run: Path) -> dict:
    return json.loads((run / "measurements" / "headline.json").read_text())


@pytest.fixture
def compact(small: Compose) -> Path:
    return distil(small("student.dtype=bfloat16", "student.shard_size=20KB"))


def test_what_is_measured_is_what_is_saved(compact: Path, small: Compose, monkeypatch: pytest.MonkeyPatch):
    student = compact / "student"
    files = sorted(student.glob("*.safetensors"))
    assert len(files) > 1 and (student / "model.safetensors.index.json").exists()
    weights = [weight for file in files for weight in load_file(file).values()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    # Embeddings that are the output head, too, are there once.
    assert len({weight.float().numpy().tobytes() for weight in weights if weight.numel() > 64}) == sum(
        weight.numel() > 64 for weight in weights
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert AutoModelForCausalLM.from_pretrained(student, trust_remote_code=True).dtype == torch.bfloat16
    told = json.loads((student / "provenance.json").read_text())
    assert told["parity"]["reloaded"] == 0 and told["student"]["dtype"] == "bfloat16"
    again = PIPELINES["evaluate"](small("goal=evaluate", f"student.path={student}", f"run_dir={compact}-seen"))
    assert headline(again)["student_ppl"] == pytest.approx(headline(compact)["student_ppl"], rel=1e-6)


def test_rounding_touches_what_is_saved_and_no_more(teachers: dict[str, Path], small: Compose):
    config = small(f"teacher.path={teachers['llama']}")
    student = build_student(load_teacher(config.teacher, 32, TASKS["causal_lm"]), config.mixer)
    with torch.no_grad():
        for each in student.parameters():
            each.add_(1e-3)
    before = {name: each.clone() for name, each in [*student.state_dict().items(), *student.named_buffers()]}
    round_weights(student, "bfloat16")
    saved = student.state_dict()
    for name, each in [*saved.items(), *student.named_buffers()]:
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name].bfloat16().float() if name in saved else before[name])
    assert any("inv_freq" in name and name not in saved for name in before)
    round_weights(student, "float32")
    assert all(torch.equal(each, saved[name]) for name, each in student.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_merged_student_says_what_it_said_with_adapters(family: str, teachers: dict[str, Path], small: Compose):
    config = small(f"teacher.path={teachers[family]}", "stages.logits.train=lora")
    teacher = load_teacher(config.teacher, 32, TASKS["causal_lm"])
    stage = LogitsStage(teacher, build_student(teacher, config.mixer), config.stages.logits, None)
    ids = torch.randint(5, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stage.student.eval()
        before = stage.student(input_ids=ids).logits
        for name, each in stage.student.named_parameters():
            if "lora_B" in name:
                each.normal_(0, 0.3)
        adapted = stage.student(input_ids=ids).logits
        merged = stage.finished().eval()(input_ids=ids).logits
    assert (adapted - before).abs().max() > 0.1
    assert (merged - adapted).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("key", "told"),
    [("dtype=float16", "is unknown; known: float32, bfloat16"), ("shard_size=5", "must be a size, as 5GB or 500MB")],
)
def test_what_cannot_be_is_told(key: str, told: str, small: Compose):
    with pytest.raises(UserError, match=rf"^student\.{key} {told}"):
        distil(small(f"student.{key}"))
