"""Families of models: each is swapped without a line of code for it, and what cannot be swapped is refused by name."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from flexformer.environments import answered, oldest
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

import distill.checkpoint  # noqa: F401  # so that the students' files travel with them
from distill import config
from distill.capture import CAPTURE
from distill.companions import name_companions
from distill.errors import UserError
from distill.export.step import Step
from distill.flexformer.exact import is_causal
from distill.flexformer.model import Flexformer
from distill.stages.attention import AttentionStage
from distill.stages.logits import LogitsStage
from distill.stages.stage import keep, recompute
from distill.student import build_student
from distill.teacher import Teacher, freeze, load_teacher

from . import tiny
from .conftest import compose
from .families import DECODERS, FAMILIES, REFUSED_DECODERS, REFUSED_ENCODERS, VOCABULARY, configuration, task_of

MIXER = tiny.PLAIN | {"map": "exponential", "features": 6, "frequency_scale": 0.5, "key_weight": "quadratic"}
#: Families that transformers 5.0.0 cannot run a student of.
LATER = ("opt", "gptj", "codegen", "modernbert", "eurobert")
#: The same in all paths and on both sides of a reload, in float64.
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Pair(NamedTuple):
    """plain: the teacher's model as transformers builds it, with weights of its own."""

    teacher: Teacher
    student: Flexformer
    plain: Any


def model_of(name: str) -> Any:
    """Random, with weights large enough for attention to be far from uniform."""
    torch.manual_seed(0)
    made = task_of(name).auto.from_config(configuration(name, FAMILIES[name]), attn_implementation=CAPTURE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def pair_of(name: str) -> Pair:
    model = model_of(name).double()
    plain = copy.deepcopy(model).eval()
    plain.set_attn_implementation("sdpa")
    teacher = freeze(name, model, None, torch.float32, task_of(name), 9)  # type: ignore[arg-type]
    student = build_student(teacher, MIXER).double().eval()
    with torch.no_grad():
        for mixer in student.mixers.values():
            for parameter in mixer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return Pair(teacher, student, plain)


def ids(batch: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> Tensor | None:
    """Row b misses b tokens on its side."""
    if side == "none":
        return None
    present = torch.arange(9)[None] >= torch.arange(3)[:, None]
    return (present if side == "left" else present.flip(1)).long()


def explicit(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' interface, answered by the whole map: A_ij = e^{w(k_j)} φ(q_i)·φ(k_j) over its row's sum."""
    mixer, group = module.mixer, query.shape[1] // key.shape[1]
    query, key = query * scaling**0.5, key * scaling**0.5
    nowhere = torch.zeros(query.shape[0], query.shape[2], dtype=torch.long)
    phi, (psi, _) = mixer.map.query_features(query, nowhere), mixer.map.key_features(key, nowhere)
    psi = psi * mixer.key_weight(key).exp()[..., None]
    weights = phi @ psi.repeat_interleave(group, 1).mT
    weights = weights.tril() if is_causal(module) else weights
    weights = weights if mask is None else weights * mask[:, None, None]
    rows = weights.sum(-1, keepdim=True)
    # A row that sees only padding is 0.
    out = torch.where(rows > 0, weights / rows.where(rows > 0, 1.0), 0.0) @ value.repeat_interleave(group, 1)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("explicit_family", explicit)
AttentionMaskInterface.register("explicit_family", lambda *args, attention_mask=None, **kwargs: attention_mask)


def test_the_teacher_stays_what_it_was(pair: Pair):
    """Bitwise, although a student was built from it, is run, and it is captured."""
    with torch.no_grad():
        expected = pair.plain(input_ids=ids()).logits
    assert torch.equal(pair.teacher.predict({"input_ids": ids()}), expected)
    pair.student(input_ids=ids())
    heads = pair.teacher.heads({"input_ids": ids()})
    assert len(heads) == len(pair.teacher.layers) == len(pair.student.mixers) == 2
    assert torch.equal(pair.teacher.predict({"input_ids": ids()}), expected)


def test_with_softmax_put_back_the_student_is_the_teacher(pair: Pair):
    pair.student.lm.set_attn_implementation("sdpa")
    with torch.no_grad():
        found = pair.student.lm(input_ids=ids()).logits
    pair.student.lm.set_attn_implementation("flexformer")
    torch.testing.assert_close(found, pair.teacher.predict({"input_ids": ids()}), **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_those_of_the_whole_map(pair: Pair, side: str):
    given = {"input_ids": ids(), "attention_mask": padding(side)}
    found = pair.student(**given).logits
    pair.student.lm.set_attn_implementation("explicit_family")
    expected = pair.student.lm(**given, **pair.teacher.task.arguments).logits
    pair.student.lm.set_attn_implementation("flexformer")
    torch.testing.assert_close(found, expected, **TIGHT)
    assert not torch.isclose(found, pair.teacher.predict({"input_ids": ids()}), atol=1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_padding_does_not_matter(pair: Pair, side: str):
    present = padding(side)
    other = torch.where(present == 1, ids(), ids(seed=1))
    found, again = (pair.student(input_ids=each, attention_mask=present).logits for each in (ids(), other))
    torch.testing.assert_close(found[present == 1], again[present == 1], **TIGHT)


def test_gradients_reach_every_frequency_and_layers_can_be_computed_again(pair: Pair):
    student = pair.student

    def gradients() -> dict[str, Tensor]:
        student.zero_grad()
        student(input_ids=ids(), **pair.teacher.task.arguments).logits.square().mean().backward()
        return {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}

    plain = gradients()
    recompute(student)
    again = gradients()
    keep(student)
    mixers = [name for name, _ in student.named_parameters() if ".mixer." in name]
    assert mixers and all(plain[name].any() for name in mixers)
    torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-12)


def test_a_step_of_each_stage(pair: Pair):
    """It lowers what it is to lower."""
    teacher, batch = pair.teacher, {"input_ids": ids()}
    student = copy.deepcopy(pair.student)
    stages = compose("stages.attention.queries=null").stages
    for stage in (
        AttentionStage(teacher, student.mixers, stages.attention),
        LogitsStage(teacher, student, stages.logits),
    ):
        optimizer = torch.optim.SGD([each for each in stage.parameters() if each.requires_grad], lr=1e-3)
        before = stage.training_step(batch, 0)
        before.backward()
        optimizer.step()
        assert stage.training_step(batch, 0) < before
        optimizer.zero_grad()


@torch.no_grad()
def test_export_and_reload(pair: Pair, tmp_path: Path):
    pair.student.save_pretrained(tmp_path)
    again = type(pair.student).from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(again(input_ids=ids()).logits, pair.student(input_ids=ids()).logits, **TIGHT)


@torch.no_grad()
@torch.no_grad()
def test_exported_students_run_on_the_oldest_release(tmp_path: Path):
    path, _ = oldest(tmp_path)
    students = {name: pair_of(name).student for name in FAMILIES if name not in LATER}
    folders = [tmp_path / f"student_{index}" for index in range(len(students))]
    for folder, student in zip(folders, students.values(), strict=True):
        student.save_pretrained(folder)
        name_companions(folder)
    answers = answered(path, ids(), folders)["together"]
    for (name, student), found in zip(students.items(), answers, strict=True):
        torch.testing.assert_close(found["logits"], student(ids()).logits, **TIGHT, msg=lambda m, n=name: f"{n}: {m}")
        if student.can_generate():
            assert torch.equal(found["greedy"], student.generate(ids(), max_new_tokens=12, do_sample=False)), name


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
def test_a_state_can_be_empty_and_joined(pair: Pair):
    """Whatever a family's heads look like: what a server needs, and a step for another runtime."""
    step = Step(pair.student, 2)
    state, said = step.start, []
    for token in ids(2).split(1, 1):
        logits, state = step(token, state)
        said.append(logits)
    torch.testing.assert_close(torch.stack(said, 1), pair.student(ids(2), use_cache=False).logits, **TIGHT)
    pair.student.requires_grad_(True)


@pytest.mark.parametrize("pair", DECODERS, indirect=True)
def test_decoding_is_reading(pair: Pair):
    """Piece by piece, and by `generate` with padding on the left, as the whole text would have it."""
    whole = pair.student(input_ids=ids()).logits
    first = pair.student(input_ids=ids()[:, :5], use_cache=True)
    rest = pair.student(input_ids=ids()[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, **TIGHT)
    present = padding("left")
    generated = pair.student.generate(
        ids(), attention_mask=present, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    for row, missing in enumerate((present == 0).sum(1).tolist()):
        read = ids()[row : row + 1, missing:]
        for _ in range(3):
            read = torch.cat([read, pair.student(input_ids=read).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(generated[row, missing:], read[0])


def test_packed_texts_are_refused(pair: Pair):
    restarted = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3]).expand(3, -1)
    with pytest.raises(ValueError, match="position_ids: these rows hold several texts"):
        pair.student(input_ids=ids(), position_ids=restarted)


def test_windows_as_long_as_what_is_read_hide_nothing():
    """Only a context beyond them is refused; without one, any."""
    model = model_of("starcoder2")
    for context in (9, 64):
        assert freeze("it", model, None, torch.float32, context=context).layers  # type: ignore[arg-type]
    for context in (65, None):
        with pytest.raises(UserError, match=r"it: starcoder2 has sliding windows of 64 tokens.*data\.context=64"):
            freeze("it", model, None, torch.float32, context=context)  # type: ignore[arg-type]


def test_what_else_fails_is_said(monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    for failure, told in (
        (RuntimeError("out of memory.\nat once"), "out of memory"),
        (AssertionError(), "AssertionError"),
    ):
        for at in (model.model.embed_tokens, model.model.norm):
            with monkeypatch.context() as patch:
                patch.setattr(at, "forward", partial(_raise, failure))
                with pytest.raises(UserError, match=f"^teacher.path=it: llama cannot read a token: {told}$"):
                    freeze("it", model, None, torch.float32)  # type: ignore[arg-type]


def _raise(failure: Exception, *args: Any) -> None:
    raise failure


@pytest.mark.parametrize("name", REFUSED_DECODERS | REFUSED_ENCODERS)
def test_what_cannot_be_swapped_is_refused_by_name(name: str, tmp_path: Path, tokenizer):
    decoder = name in REFUSED_DECODERS
    options, reason = (REFUSED_DECODERS if decoder else REFUSED_ENCODERS)[name]
    task = task_of(name if decoder else "bert")
    task.auto.from_config(configuration(name, options)).save_pretrained(tmp_path)
    named = copy.deepcopy(tokenizer)
    named.pad_token = named.mask_token = named.eos_token
    named.save_pretrained(tmp_path)
    wanted = config.Teacher(path=str(tmp_path), dtype="float32", architecture=None, vocabulary=None)
    with pytest.raises(UserError, match=r"^[^\n]*$") as raised:
        load_teacher(wanted, tiny.CONTEXT, task)
    assert str(raised.value).startswith(f"teacher.path={tmp_path}: {reason}")
