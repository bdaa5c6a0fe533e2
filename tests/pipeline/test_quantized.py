"""Teachers with fewer bits: what they predict, and students that start from all of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

from distill.checks import check
from distill.errors import UserError
from distill.measure.headline import parameters
from distill.pipeline import distil
from distill.scratch import train_tokenizer
from distill.student import build_student
from distill.task import TASKS
from distill.teacher import Teacher, load_teacher

from . import tiny
from .conftest import SMALL, compose
from .test_teacher import ids, load

#: transformers warns that its own defaults compute in float16.
pytestmark = pytest.mark.filterwarnings("ignore")
#: Heads and layers of a size that the library's kernels take.
POCKET = "pocket"
BITS = ["load_in_8bit", "load_in_4bit"]


def quantized(path: str, bits: str) -> Teacher:
    wanted = compose(f"teacher.path={path}", f"teacher.quantization={{quant_method:bitsandbytes,{bits}:true}}")
    return load_teacher(wanted.teacher, tiny.CONTEXT)


@pytest.mark.parametrize("bits", BITS)
def test_it_predicts_nearly_the_same(bits: str):
    whole, fewer = load(POCKET), quantized(POCKET, bits)
    wanted, found = (each.predict({"input_ids": ids()}) for each in (whole, fewer))
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() < (0.05 if bits == "load_in_8bit" else 0.3) * wanted.norm()
    assert fewer.layers == whole.layers and fewer.weights_hash() != whole.weights_hash()
    # Computing changes some of them.
    assert quantized(POCKET, bits).weights_hash() == fewer.weights_hash()
    assert any(each.dtype in (torch.int8, torch.uint8) for each in fewer.model.state_dict().values())


@pytest.mark.parametrize("bits", BITS)
def test_its_student_has_all_bits(bits: str):
    whole, fewer = load(POCKET), quantized(POCKET, bits)
    student = build_student(fewer, tiny.MIXER)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(student.lm.state_dict()[name], weight), name
    assert "quantization_config" not in student.config.base
    exact = build_student(fewer, tiny.MIXER | {"exact_layers": "all"}).eval()
    torch.testing.assert_close(exact(ids()).logits, whole.predict({"input_ids": ids()}), rtol=1e-4, atol=1e-4)
    # A packed weight holds two numbers in one.
    assert parameters(fewer, student)["teacher"] == parameters(whole, student)["teacher"]


def test_a_run_is_whole(text: Path, tmp_path: Path):
    given = [f"teacher.path={POCKET}", f"data.path={text}", f"run_dir={tmp_path / 'run'}"]
    kept = "teacher.quantization={quant_method:bitsandbytes,load_in_4bit:true}"
    path = distil(compose("recipe=pocket", *SMALL, *given, kept))
    headline = json.loads((path / "measurements/headline.json").read_text())
    source = json.loads((path / "student/provenance.json").read_text())["teacher"]
    assert source["quantization"] == {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert "measured with quantised weights" in (path / "student/README.md").read_text()
    assert "teacher's weights: quantised" in (path / "report/report.md").read_text()
    assert headline["student_ppl"]["prose"] > 1 and headline["cache_bytes_per_token"] == 4 * 2 * 4 * 64 * 2
    student = AutoModelForCausalLM.from_pretrained(path / "student", trust_remote_code=True)
    assert all(each.dtype == torch.float32 for each in student.parameters())


def test_a_classifier_keeps_its_head(tmp_path: Path):
    """Of as few labels, which the kernels for 4 bits refuse."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=300, pad_token_id=1, **shape))
    model.save_pretrained(tmp_path)
    train_tokenizer([tiny.prose(0, 50)], 300, TASKS["sequence_classification"]).save_pretrained(tmp_path)
    wanted = compose(f"teacher.path={tmp_path}", "teacher.quantization={quant_method:bitsandbytes,load_in_4bit:true}")
    teacher = load_teacher(wanted.teacher, tiny.CONTEXT, TASKS["sequence_classification"])
    assert teacher.predict({"input_ids": ids()}).shape == (2, 2) and teacher.model.classifier.weight.shape == (2, 64)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["measure.teacher_tuned=true"], r"^teacher\.quantization: such weights cannot be trained; leave it out, or"),
        (["goal=teacher"], r"^teacher\.quantization: such weights cannot be trained"),
    ],
)
def test_it_is_not_trained(overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        check(compose("+teacher.quantization.quant_method=bitsandbytes", *overrides))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{quant_method:nope}", r"^teacher\.quantization: [^\n]*nope[^\n]*$"),
        (
            "{quant_method:bitsandbytes,load_in_4bit:true,bnb_4bit_compute_dtype:nope}",
            r"^teacher\.quantization: [^\n]*$",
        ),
        ("{load_in_4bit:7}", r"^teacher\.quantization: [^\n]*$"),
        # A library that is not installed.
        (
            "{quant_method:quanto,weights:int8}",
            r"^teacher\.quantization: [^\n]*quanto[^\n]*; install it, or leave",
        ),
    ],
)
def test_what_cannot_be_is_told(given: str, message: str):
    wanted = compose(f"teacher.path={POCKET}", f"teacher.quantization={given}")
    with pytest.raises(UserError, match=message):
        load_teacher(wanted.teacher, tiny.CONTEXT)


def test_weights_that_are_stored_in_fewer_bits_are_refused(tmp_path: Path):
    fewer = quantized(POCKET, "load_in_8bit")
    fewer.model.save_pretrained(tmp_path / "fewer")
    fewer.tokenizer.save_pretrained(tmp_path / "fewer")
    with pytest.raises(UserError, match=r"^teacher\.path=[^\n]*fewer holds quantised weights, from"):
        load(tmp_path / "fewer")
