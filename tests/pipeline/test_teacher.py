"""The teacher: what is captured of it, that it stays what it was, and which models are refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from distill import config
from distill.capture import CAPTURE
from distill.errors import UserError
from distill.student import build_student
from distill.task import TASKS
from distill.teacher import Teacher, freeze, load_teacher

from . import tiny

#: Where attention happens, what comes after it, and its scaling by layer.
PLACES = {
    "gpt2": ("transformer.h.{}.attn", "c_proj", lambda layer: 8**-0.5 / (layer + 1)),
    "llama": ("model.layers.{}.self_attn", "o_proj", lambda layer: 8**-0.5),
}
SHAPES = {"gpt2": (2, 2, 8), "llama": (4, 2, 8)}


def load(path: Path | str, context: int = tiny.CONTEXT, dtype: str = "float32", task: str = "causal_lm") -> Teacher:
    wanted = config.Teacher(path=str(path), dtype=dtype, architecture=None, vocabulary=None)
    return load_teacher(wanted, context, TASKS[task])


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(tiny.VOCABULARY, (2, 19), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(PLACES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_attention_layers(teachers: dict[str, Path], family: str):
    heads, kv_heads, head_dim = SHAPES[family]
    assert load(teachers[family]).layers == [
        {"module": PLACES[family][0].format(i), "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        for i in range(2)
    ]


def test_captured_is_what_enters_attention(teachers: dict[str, Path], family: str):
    """Causal softmax of it is what every attention layer passes on."""
    teacher = load(teachers[family])
    module, projection, scaling = PLACES[family]
    passed_on = []
    for layer in range(2):
        after = teacher.model.get_submodule(f"{module.format(layer)}.{projection}")
        after.register_forward_pre_hook(lambda _, given: passed_on.append(given[0]))
    captured = teacher.heads({"input_ids": ids()})
    assert len(captured) == 2 and len(passed_on) == 1, "what comes after the last layer's heads is not computed"
    assert len(teacher.heads({"input_ids": ids()}, 1)) == 1 and len(passed_on) == 1
    passed_on.clear()
    teacher.predict({"input_ids": ids()})
    for layer, heads in enumerate(captured):
        assert heads.module is teacher.model.get_submodule(module.format(layer))
        assert heads.scaling == pytest.approx(scaling(layer))
        key, value = (each.repeat_interleave(heads.query.shape[1] // each.shape[1], 1) for each in heads[2:4])
        logits = heads.query @ key.mT * heads.scaling
        future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        out = logits.masked_fill(future, -torch.inf).softmax(-1) @ value
        assert logits.std() > 0.3
        torch.testing.assert_close(out.transpose(1, 2).flatten(2), passed_on[layer], rtol=1e-4, atol=1e-5)


def test_logits_are_bitwise_those_of_a_plain_model(teachers: dict[str, Path], family: str):
    """Before and after a student was built from it, and while it is captured."""
    teacher = load(teachers[family])
    plain = AutoModelForCausalLM.from_pretrained(teachers[family], attn_implementation="sdpa").eval()
    with torch.no_grad():
        expected = plain(ids()).logits
    assert torch.equal(teacher.predict({"input_ids": ids()}), expected)
    student = build_student(teacher, tiny.MIXER)
    student(ids())
    teacher.heads({"input_ids": ids()})
    assert torch.equal(teacher.predict({"input_ids": ids()}), expected)


def test_it_is_frozen_and_nothing_is_captured_outside(teachers: dict[str, Path]):
    teacher = load(teachers["gpt2"])
    assert not teacher.model.training and not any(each.requires_grad for each in teacher.model.parameters())
    before = teacher.heads({"input_ids": ids()})
    teacher.predict({"input_ids": ids()})
    assert len(before) == 2 and len(teacher.heads({"input_ids": ids()})) == 2


def test_a_model_in_memory_is_frozen_too(teachers: dict[str, Path], tokenizer):
    model = AutoModelForCausalLM.from_pretrained(teachers["gpt2"], attn_implementation=CAPTURE)
    teacher = freeze("in memory", model.train().requires_grad_(True), tokenizer, torch.float32)
    assert not any(each.training for each in model.modules()) and len(teacher.layers) == 2
    assert not any(each.requires_grad for each in model.parameters())


def test_low_precision(teachers: dict[str, Path]):
    teacher = load(teachers["llama"], dtype="bfloat16")
    assert (
        teacher.predict({"input_ids": ids()}).dtype
        == teacher.heads({"input_ids": ids()})[0].query.dtype
        == torch.bfloat16
    )
    assert {each.dtype for each in build_student(teacher, tiny.MIXER).parameters()} == {torch.float32}


def test_the_hash_is_of_the_weights(teachers: dict[str, Path]):
    one, same, other = load(teachers["gpt2"]), load(teachers["gpt2"]), load(teachers["llama"])
    assert one.weights_hash() == same.weights_hash() != other.weights_hash()
    with torch.no_grad():
        next(same.model.parameters())[0, 0] += 1e-3
    assert one.weights_hash() != same.weights_hash()


def test_the_pocket_teacher_is_always_there():
    assert load("pocket").predict({"input_ids": ids()}).isfinite().all()


SMALL = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


def refusal(path: Path | str, **kwargs) -> str:
    with pytest.raises(UserError, match=r"^[^\n]*$") as raised:
        load(path, **kwargs)
    return str(raised.value)


def test_an_encoder_decoder_is_refused(tmp_path: Path, tokenizer):
    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(**shape, **SMALL)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert message.startswith(f"teacher.path={tmp_path}") and "decoder" in message


def test_a_path_that_is_not_there_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file", "./none", "~/none", "~nobody-of-that-name/none", "none/at/all"):
        message = refusal(path)
        assert message.startswith(f"teacher.path={path} does not exist") and "give a directory" in message


def test_a_folder_without_a_model_is_named(tmp_path: Path, tokenizer):
    assert refusal(tmp_path).startswith(f"teacher.path={tmp_path} cannot be loaded")
    GPT2Config(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    assert refusal(tmp_path).startswith(f"teacher.path={tmp_path} cannot be loaded")


def test_damaged_weights_are_named(tmp_path: Path, tokenizer):
    folder = tiny.save(tmp_path / "teacher", tiny.CONFIGS["gpt2"], tokenizer)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refusal(folder).startswith(f"teacher.path={folder} cannot be loaded")


def test_a_hub_out_of_reach_is_said_in_one_line():
    message = refusal("someone/a-model")
    assert message.startswith("teacher.path=someone/a-model cannot be loaded") and "local directory" in message


def test_a_context_beyond_the_positions(teachers: dict[str, Path]):
    assert load(teachers["gpt2"], context=64)
    message = refusal(teachers["gpt2"], context=65)
    assert message.startswith("data.context=65 is longer than the teacher's 64 positions") and "lower" in message


def test_a_teacher_without_tokenizer_files_is_refused(teachers: dict[str, Path], tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((teachers["gpt2"] / name).read_bytes())
    assert "tokenizer.json" in refusal(tmp_path)
