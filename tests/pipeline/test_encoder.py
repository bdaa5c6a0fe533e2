"""Encoders: a masked language model's task, from the tokenizer to the exported student."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertConfig

from distill.checks import check
from distill.config import Config
from distill.divergence import logit_kl
from distill.errors import UserError
from distill.measure.perplexity import agreement, ratio_error, read
from distill.pipeline import PIPELINES, distil
from distill.scratch import train_tokenizer
from distill.stages.attention import AttentionStage
from distill.stages.language import LanguageStage
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import NO_TARGET, TASKS
from distill.task.batches import Masking
from distill.teacher import Teacher

from . import test_teacher, tiny
from .conftest import compose

ENCODER = TASKS["masked_lm"]
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SHORT = [
    "recipe=compare-encoder",
    f"data.context={tiny.CONTEXT}",
    "data.validation_blocks=6",
    *(f"stages.{stage}.{key}" for stage in ("attention", "logits") for key in ("max_steps=3", "batch_size=2")),
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "measure.fidelity_blocks=2",
    "measure.map_tokens=8",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `teacher.path` takes, with a tokenizer as goal=teacher makes it."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer([tiny.prose(0, 150)], tiny.VOCABULARY, ENCODER)
    shape = {key: value for key, value in BERT.items() if key != "model_type"}
    tiny_bert = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny_bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


load = partial(test_teacher.load, task="masked_lm")


@pytest.fixture
def teacher(encoder: Path) -> Teacher:
    return load(encoder)


@pytest.fixture
def made(encoder: Path, text: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        given = [f"teacher.path={encoder}", f"data.path={text}", f"run_dir={tmp_path / 'run'}"]
        return compose(*SHORT, *given, *overrides)

    return make


def corpus(teacher: Teacher, blocks: int = 8) -> Any:
    found = tiny.corpus(blocks)
    found.collate = ENCODER.collate(teacher.tokenizer)
    return found


# Masks


def test_masks_are_berts(teacher: Teacher):
    """15 % of the tokens are targets; of these 80 % are hidden and 10 % replaced; ends of texts are left alone."""
    rows = [{"input_ids": torch.randint(3, tiny.VOCABULARY, (400,))} for _ in range(50)]
    rows[0]["input_ids"][:] = teacher.tokenizer.eos_token_id
    batch = Masking(teacher.tokenizer, seed=0)(rows)
    ids = torch.stack([row["input_ids"] for row in rows])
    targets = batch["labels"] != NO_TARGET
    assert set(batch) == {"input_ids", "labels"} and not targets[0].any()
    assert targets[1:].double().mean() == pytest.approx(0.15, abs=0.01)
    assert torch.equal(batch["labels"][targets], ids[targets])
    assert torch.equal(batch["input_ids"][~targets], ids[~targets])
    hidden = batch["input_ids"][targets] == teacher.tokenizer.mask_token_id
    changed = batch["input_ids"][targets] != ids[targets]
    assert hidden.double().mean() == pytest.approx(0.8, abs=0.03)
    assert (changed & ~hidden).double().mean() == pytest.approx(0.1, abs=0.02)


def test_a_seed_gives_one_sequence_of_masks(teacher: Teacher):
    """Training: other masks at every step, the same in every run. Held-out text: one mask, whatever the seed."""
    found = corpus(teacher)

    def masks(seed: int) -> list[torch.Tensor]:
        return [batch["labels"] for batch in found.batches(4, 8, seed)]

    first = masks(3)
    assert all(torch.equal(one, same) for one, same in zip(first, masks(3), strict=True))
    assert not torch.equal(first[0] == NO_TARGET, first[1] == NO_TARGET)
    assert not torch.equal(first[0] == NO_TARGET, masks(4)[0] == NO_TARGET)
    held_out = [next(iter(found.evaluation("random", 8))) for _ in range(2)]
    found.seed = 99
    held_out.append(next(iter(found.evaluation("random", 8))))
    assert all(torch.equal(each[key], held_out[0][key]) for each in held_out for key in ("input_ids", "labels"))


def test_teacher_and_student_read_the_same_masked_text(teacher: Teacher, made):
    """In stage 2, in stage 1, and when they are measured."""
    config, seen = made(), {"teacher": [], "student": []}
    student = build_student(teacher, config.mixer)
    for name, model in (("teacher", teacher.model), ("student", student)):
        model.register_forward_pre_hook(
            lambda _, args, given, name=name: seen[name].append(given["input_ids"]), with_kwargs=True
        )
    found = corpus(teacher)
    stage, device = LogitsStage(teacher, student, config.stages.logits), torch.device("cpu")
    for batch in found.batches(2, 4, 0):
        stage.training_step(batch, 0)
    for model in (teacher.model, student):
        read(model, found.evaluation("random", 3), device, ENCODER)
    assert len(seen["teacher"]) == 5
    for one, other in zip(seen["teacher"], seen["student"], strict=True):
        assert torch.equal(one, other) and (one == teacher.tokenizer.mask_token_id).any()


# Losses


def test_losses_are_over_masked_tokens(teacher: Teacher):
    batch = next(iter(corpus(teacher).batches(1, 4, 0)))
    logits = teacher.model(input_ids=batch["input_ids"]).logits
    targets = batch["labels"] != NO_TARGET
    expected = cross_entropy(logits[targets], batch["labels"][targets])
    stage = LanguageStage(teacher.model, compose().stages.pretrain, ENCODER)
    stage.model.eval()
    torch.testing.assert_close(stage.training_step(batch, 0), expected)
    assert set(stage.losses) == {"masked token"}
    nothing = {**batch, "labels": torch.full_like(batch["labels"], NO_TARGET)}
    assert ENCODER.loss(logits, nothing) == 0


def test_perplexity_is_over_masked_tokens(teacher: Teacher, made):
    """exp of the mean over all of them, although blocks have not the same number."""
    student = build_student(teacher, made().mixer)
    found, device = corpus(teacher), torch.device("cpu")
    readings = [read(model, found.evaluation("random", 3), device, ENCODER) for model in (teacher.model, student)]
    losses, right = [], []
    for batch in found.evaluation("random", 3):
        targets = batch["labels"] != NO_TARGET
        logits = [
            model(input_ids=batch["input_ids"]).logits[targets] for model in (teacher.model.eval(), student.eval())
        ]
        losses.append(cross_entropy(logits[0], batch["labels"][targets], reduction="none"))
        right.append(logits[0].argmax(-1) == logits[1].argmax(-1))
    assert readings[0].tokens == len(torch.cat(losses))
    assert readings[0].perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)
    assert agreement(readings[1], readings[0]) == pytest.approx(torch.cat(right).double().mean().item())
    assert ratio_error(readings[1], readings[0]) > 0


@pytest.mark.parametrize("together", [3, 256])
def test_kl_is_over_masked_tokens(teacher: Teacher, made, together: int, monkeypatch: pytest.MonkeyPatch):
    """In double precision, target after target; of each block and of all targets, which blocks share unequally."""
    monkeypatch.setattr("distill.task.task.TOGETHER", together)
    student = build_student(teacher, made().mixer)
    found, device = corpus(teacher), torch.device("cpu")
    reading = read(student, found.evaluation("random", 3), device, ENCODER, teacher)
    kls = []
    for batch in found.evaluation("random", 3):
        pair = [
            model.eval()(input_ids=batch["input_ids"]).logits.detach().double().softmax(-1)
            for model in (teacher.model, student)
        ]
        for p, s, labels in zip(*pair, batch["labels"], strict=True):
            kls.append([(p[i] * (p[i] / s[i]).log()).sum().item() for i in range(len(p)) if labels[i] != NO_TARGET])
    assert len({len(block) for block in kls}) > 1
    assert reading.kl.tolist() == pytest.approx([sum(block) / len(block) for block in kls], rel=1e-4)
    every = [each for block in kls for each in block]
    assert reading.divergence == pytest.approx(sum(every) / len(every), rel=1e-4)
    assert sum(every) / len(every) != pytest.approx(reading.kl.mean().item(), rel=1e-3)
    assert read(teacher.model, found.evaluation("random", 3), device, ENCODER, teacher).divergence == 0


def test_a_block_without_targets_has_no_kl(teacher: Teacher):
    logits = torch.randn(2, 2, 5, 7).unbind()
    labels = torch.full((2, 5), NO_TARGET)
    assert not ENCODER.kl(*logits, {"labels": labels}).any()
    labels[1, 3] = 6
    told = ENCODER.kl(*logits, {"labels": labels})
    assert told.shape == (2, 5) and told.nonzero().tolist() == [[1, 3]]


def test_stage_2_compares_every_position(teacher: Teacher, made):
    config = made("stages.logits.cross_entropy=0.5")
    student = build_student(teacher, config.mixer)
    batch = next(iter(corpus(teacher).batches(1, 4, 0)))
    stage = LogitsStage(teacher, student, config.stages.logits)
    logits = stage.student(input_ids=batch["input_ids"]).logits
    expected = logit_kl(teacher.predict(batch), logits, 1.0) + 0.5 * ENCODER.loss(logits, batch)
    torch.testing.assert_close(stage.training_step(batch, 0), expected)


@pytest.mark.parametrize("name", ["exponential", "linformer mixer.features=8", "elu", "stationary-signed"])
def test_stage_1_lowers_its_loss(teacher: Teacher, made, name: str):
    config = made(*f"mixer={name}".split(), "stages.attention.queries=null")
    student = build_student(teacher, config.mixer)
    stage = AttentionStage(teacher, student.mixers, config.stages.attention)
    batch = next(iter(corpus(teacher).batches(1, 8, 0)))
    learned = [each for each in stage.parameters() if each.requires_grad]
    before = stage.training_step(batch, 0)
    assert before.isfinite()
    if learned:
        optimizer = torch.optim.Adam(learned, lr=1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            stage.training_step(batch, 0).backward()
            optimizer.step()
        assert stage.training_step(batch, 0) < 0.95 * before


# The teacher


def test_what_is_captured(teacher: Teacher):
    """Softmax of it, over both directions, is what the layer passes on."""
    passed_on = []
    for i in range(2):
        after = teacher.model.bert.encoder.layer[i].attention.output.dense
        after.register_forward_pre_hook(lambda _, given: passed_on.append(given[0]))
    batch = {"input_ids": torch.randint(3, tiny.VOCABULARY, (2, 19))}
    captured = teacher.heads(batch)
    # The last layer does not attend where its heads are all that is wanted.
    passed_on.clear()
    teacher.predict(batch)
    for heads, found in zip(captured, passed_on, strict=True):
        assert not heads.causal
        out = (heads.query @ heads.key.mT * heads.scaling).softmax(-1) @ heads.value
        torch.testing.assert_close(out.transpose(1, 2).flatten(2), found, rtol=1e-4, atol=1e-5)
    module = "bert.encoder.layer.1.attention.self"
    assert teacher.layers[1] == {"module": module, "heads": 2, "kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("name", ["exponential", "linformer mixer.features=8", "softmax"])
def test_logits_are_bitwise_those_of_a_plain_model(encoder: Path, teacher: Teacher, made, name: str):
    """Before and after a student was built from it; a student that keeps every layer says the same."""
    ids = torch.randint(3, tiny.VOCABULARY, (2, 19))
    plain = AutoModelForMaskedLM.from_pretrained(encoder, attn_implementation="sdpa").eval()
    expected = plain(input_ids=ids).logits
    assert torch.equal(teacher.predict({"input_ids": ids}), expected)
    student = build_student(teacher, made(*f"mixer={name}".split()).mixer).eval()
    found = student(input_ids=ids).logits
    teacher.heads({"input_ids": ids})
    assert torch.equal(teacher.predict({"input_ids": ids}), expected)
    assert torch.equal(found, expected) == (name == "softmax")


def test_refusals(encoder: Path, teachers: dict[str, Path], made, tmp_path: Path):
    with pytest.raises(UserError, match=r"^teacher\.path=[^\n]*: bert is an encoder; set task=masked_lm$"):
        load(encoder, task="causal_lm")
    for family in ("gpt2", "llama"):
        with pytest.raises(UserError, match=rf"^teacher\.path=[^\n]*: {family} is a decoder; set task=causal_lm$"):
            load(teachers[family])
    decoder = tmp_path / "decoder"
    BertConfig.from_pretrained(encoder, is_decoder=True).save_pretrained(decoder)
    AutoModelForCausalLM.from_pretrained(encoder, is_decoder=True).save_pretrained(decoder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(decoder)
    with pytest.raises(UserError, match="bert is a decoder; set task=causal_lm"):
        load(decoder)
    assert load(decoder, task="causal_lm").heads({"input_ids": torch.ones(1, 3, dtype=torch.long)})[0].causal
    maskless = tiny.save(tmp_path / "maskless", BertConfig.from_pretrained(encoder), tiny.train_tokenizer("a b c d"))
    with pytest.raises(UserError, match=r"tokenizer has no pad_token, which an encoder needs; set it$"):
        load(maskless)
    for mixer, message in (
        ("exponential-window", r"^mixer\.window=64: an encoder sees both directions; use mixer\.window=0$"),
        ("retnet", r"^mixer\.decay=fixed: an encoder sees both directions; use mixer\.decay=none$"),
    ):
        with pytest.raises(UserError, match=message):
            check(made(f"mixer={mixer}"))
    with pytest.raises(UserError, match=r"^mixer=linformer: [^\n]*later tokens into earlier ones[^\n]*$"):
        check(compose("mixer=linformer"))
    with pytest.raises(
        UserError, match=r"^task=nope is unknown; known: causal_lm, masked_lm, sequence_classification, embedding$"
    ):
        check(compose("task=nope"))


# The whole story


@pytest.fixture(scope="module", params=["exponential", "linformer"])
def run(request: pytest.FixtureRequest, encoder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [f"teacher.path={encoder}", f"data.path={text}", f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}"]
    return distil(compose(*SHORT, *given, f"mixer={request.param}", "mixer.features=16", "measure.teacher_tuned=true"))


def test_a_run_is_whole(run: Path):
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    fidelity = json.loads((run / "measurements" / "fidelity.json").read_text())
    linformer = headline["mixer"]["map"] == "linformer"
    assert all(math.isfinite(headline[who]["prose"]) for who in ("student_ppl", "teacher_tuned_ppl", "ratio"))
    assert headline["state_bytes"] is None and headline["feature_dim"] == 16
    kl = fidelity["domains"]["prose"]["kl"]
    assert fidelity["comparable"] is not linformer and (kl[0][0] is None) is linformer
    assert all(each is not None for each in fidelity["domains"]["prose"]["output_error"][0])
    assert (run / "report" / "report.html").is_file()
    agreed = json.loads((run / "student" / "provenance.json").read_text())["parity"]
    assert list(agreed) == ["reloaded", "parallel"] and max(agreed.values()) < 1e-5
    card = (run / "student" / "README.md").read_text()
    assert "AutoModelForMaskedLM" in card and "masked token" in card and "generate" not in card


def test_an_exported_student_answers_as_the_original(run: Path, tmp_path: Path):
    """Without distill, in a process that knows only its folder; padding included."""
    script = """
import sys
sys.modules["distill"] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder, answers = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(["abc [MASK] def", "bad"], return_tensors="pt", padding=True)
torch.save({**inputs, "logits": model(**inputs).logits}, answers)
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-c", script, str(run / "student"), str(tmp_path / "answers.pt")]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    answers = torch.load(tmp_path / "answers.pt")
    expected = ENCODER.student.from_pretrained(run / "student").eval()
    said = answers.pop("logits")
    assert not answers["attention_mask"].all()
    torch.testing.assert_close(said, expected(**answers).logits, rtol=1e-5, atol=1e-5)


def test_the_same_run_twice_is_the_same(made, tmp_path: Path):
    paths = [distil(made(f"run_dir={tmp_path / name}")) for name in ("one", "two")]
    first, second = (json.loads((path / "measurements" / "headline.json").read_text()) for path in paths)
    assert first["student_ppl"] == second["student_ppl"] and first["teacher_ppl"] == second["teacher_ppl"]


@pytest.mark.parametrize("train", ["mixers", "lora"])
def test_every_way_to_train(made, train: str):
    assert (distil(made(f"stages.logits.train={train}", "mixer=linformer")) / "student" / "config.json").is_file()


PRETRAIN = [
    "recipe=pocket-encoder",
    f"data.context={tiny.CONTEXT}",
    "data.validation_blocks=6",
    f"teacher.vocabulary={tiny.VOCABULARY}",
    "stages.pretrain.max_steps=60",
    "stages.pretrain.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    *(f"++teacher.architecture.{key}={value}" for key, value in BERT.items()),
]


def test_an_encoder_is_trained_from_nothing(text: Path, tmp_path: Path):
    wanted = compose(*PRETRAIN, f"data.path={text}", f"run_dir={tmp_path / 'run'}")
    path = PIPELINES[wanted.goal](wanted)
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    teacher = load(path / "teacher")
    tokenizer, bert = teacher.tokenizer, teacher.model.config
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 1, 2)
    assert bert.pad_token_id == 1 and bert.vocab_size == len(tokenizer) == tiny.VOCABULARY
    card = (path / "teacher" / "README.md").read_text()
    assert "masked tokens" in card and "softmax encoder" in card


def test_architectures_of_the_other_kind_are_refused(text: Path, tmp_path: Path):
    for task, family, answer in (
        ("causal_lm", "bert", "bert is an encoder; set task=masked_lm"),
        ("masked_lm", "llama", "llama is a decoder; set task=causal_lm"),
    ):
        changes = [f"task={task}", f"teacher.architecture.model_type={family}"]
        wanted = compose(*PRETRAIN, f"data.path={text}", f"run_dir={tmp_path / task}", *changes)
        with pytest.raises(UserError, match=rf"^teacher\.architecture: {answer}$"):
            PIPELINES[wanted.goal](wanted)
        assert not (tmp_path / task).exists()
