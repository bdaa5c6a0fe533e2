"""Classifiers of texts and pairs of texts: from their teachers to what is kept of their accuracy."""

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, one_hot
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from distill.checks import check
from distill.config import Config
from distill.data import Corpus, prepare
from distill.errors import UserError
from distill.measure.perplexity import Reading, read
from distill.measure.scores import compared, score
from distill.pipeline import PIPELINES, distil
from distill.report.verdict import _right
from distill.rundir import RunDirectory
from distill.scratch import train_tokenizer
from distill.student import build_student
from distill.summary import cell, summary
from distill.task import TASKS

from . import test_teacher, tiny
from .conftest import compose
from .families import ENCODERS, configuration

CLASSIFIER = TASKS["sequence_classification"]
NAMES = ["calm", "loud", "odd"]
SHORT = [
    "recipe=bert-base",
    "data=text",
    "data.path=null",
    f"data.context={tiny.CONTEXT}",
    "data.validation_blocks=30",
    "mixer.features=16",
    *(f"stages.{stage}.max_steps=3" for stage in ("pretrain", "attention", "logits")),
    *(f"stages.{stage}.batch_size=4" for stage in ("pretrain", "attention", "logits")),
    "stages.finetune.max_steps=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "measure.fidelity_blocks=3",
    "measure.map_tokens=8",
]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose label is the word that they hold, among many others, and a second text that says nothing."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        label, fill = draw.choice(NAMES), draw.choices(["abba", "cafe", "fade", "deed"], k=draw.randint(1, 12))
        fill.insert(draw.randint(0, len(fill)), label)
        made.append(
            {
                "text": " ".join(fill),
                "other": " ".join(draw.choices(["bad", "bed"], k=draw.randint(1, 4))),
                "label": label,
            }
        )
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(300))))
    return path


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer, as goal=teacher makes it for an encoder."""
    return train_tokenizer((row["text"] for row in rows(300)), tiny.VOCABULARY, TASKS["masked_lm"])


def model(family: str, words: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    shape = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "initializer_range": 0.3}
    wanted = configuration(family, ENCODERS[family] | shape | labels | changes)
    return AutoModelForSequenceClassification.from_config(wanted)


@pytest.fixture(scope="module")
def folder(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `teacher.path` takes."""
    path = tmp_path_factory.mktemp("classifier")
    model("bert", words).save_pretrained(path)
    words.save_pretrained(path)
    return path


load = partial(test_teacher.load, task="sequence_classification")


@pytest.fixture
def made(folder: Path, table: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        domain = f"+data.domains.words={{path:{table},pair:other}}"
        return compose(*SHORT, f"teacher.path={folder}", domain, f"run_dir={tmp_path / 'run'}", *overrides)

    return make


@pytest.fixture
def corpus(made: Callable[..., Config], words: Any) -> Corpus:
    return prepare(made().data, words, 0, CLASSIFIER, NAMES)


def batch_of(corpus: Corpus, size: int = 8) -> dict[str, Tensor]:
    return next(iter(corpus.evaluation("words", size)))


# Teachers


def test_a_teacher_and_its_classes(folder: Path, corpus: Corpus):
    teacher = load(folder)
    assert teacher.classes == NAMES and teacher.predict(batch_of(corpus)).shape == (8, 3)
    assert load(folder).weights_hash() == teacher.weights_hash()


def test_what_is_no_classifier_is_refused(folder: Path, words: Any, tmp_path: Path):
    headless = tmp_path / "headless"
    AutoModelForMaskedLM.from_config(model("bert", words).config).save_pretrained(headless)
    one = {"id2label": {0: "score"}, "label2id": {"score": 0}}
    model("bert", words, **one).save_pretrained(tmp_path / "regression")
    model("bert", words, problem_type="multi_label_classification").save_pretrained(tmp_path / "several")
    for name, message in (
        ("headless", r"has no bert\.pooler\.[^\n]*: it was not trained for this task; [^\n]*goal=teacher$"),
        ("regression", r"is no classifier into one of several labels \(regression\)"),
        ("several", r"is no classifier into one of several labels \(multi_label_classification\)"),
    ):
        words.save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=rf"^teacher\.path=[^\n]*{message}"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="has no cls"):
        load(folder, task="masked_lm")


def test_a_body_is_whole_or_refused(folder: Path, words: Any, made: Callable[..., Config], tmp_path: Path):
    """Where a teacher is made of another, only its head may be new."""
    torn = tmp_path / "torn"
    model("bert", words, intermediate_size=20).save_pretrained(torn)
    words.save_pretrained(torn)
    shape = json.loads((torn / "config.json").read_text()) | {"intermediate_size": 24}
    (torn / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match=r"^teacher\.path=[^\n]*torn cannot be loaded: "):
        load(torn)
    with pytest.raises(UserError, match=r"torn has no bert\.encoder\.layer\.0\.intermediate[^\n]* of the shape"):
        PIPELINES["teacher"](made("goal=teacher", f"teacher.path={torn}"))
    with pytest.raises(UserError, match=r"^stages\.pretrain\.max_steps=0 trains no teacher"):
        PIPELINES["teacher"](made("goal=teacher", "stages.pretrain.max_steps=0"))


def test_a_head_of_another_kind_is_replaced(words: Any, made: Callable[..., Config], tmp_path: Path):
    """Of other labels, or of a number."""
    for name, changes in (
        ("fewer", {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}),
        ("regression", {"id2label": {0: "x"}, "label2id": {"x": 0}, "problem_type": "regression"}),
    ):
        model("bert", words, **changes).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
        wanted = made("goal=teacher", f"teacher.path={tmp_path / name}", f"run_dir={tmp_path / f'run-{name}'}")
        made_of = load(PIPELINES["teacher"](wanted) / "teacher")
        assert made_of.classes == NAMES and made_of.model.config.problem_type == "single_label_classification"


def test_padding_is_on_the_right_whatever_the_tokenizer_says(words: Any):
    left = copy.copy(words)
    left.padding_side = "left"
    rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(0)} for ids in ([5, 6, 7], [5])]
    batch = CLASSIFIER.collate(left)(0)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_windows_and_decoders_are_refused(made: Callable[..., Config], teachers: dict[str, Path]):
    with pytest.raises(UserError, match=r"^mixer\.window=64: an encoder sees both directions"):
        check(made("mixer=exponential-window"))
    with pytest.raises(UserError, match="gpt2 is a decoder; set task=causal_lm"):
        load(teachers["gpt2"])


# Students


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family(family: str, words: Any, corpus: Corpus, tmp_path: Path):
    """Exact layers give the teacher's logits, padding included; a student with mixers reloads and ignores padding."""
    path = tmp_path / family
    model(family, words).save_pretrained(path)
    words.save_pretrained(path)
    teacher, batch = load(path), batch_of(corpus)
    inputs = CLASSIFIER.inputs(batch)
    assert not inputs["attention_mask"].all()
    exact = build_student(teacher, tiny.MIXER | {"exact_layers": "all"}).eval()
    torch.testing.assert_close(exact(**inputs).logits, teacher.predict(batch), rtol=1e-4, atol=1e-4)
    student = build_student(teacher, tiny.MIXER).eval()
    found = student(**inputs).logits
    assert found.shape == (8, 3) and not torch.isclose(found, teacher.predict(batch), atol=1e-3).all()
    for row in range(8):
        real = inputs["attention_mask"][row] != 0
        alone = {name: each[row : row + 1, real] for name, each in inputs.items()}
        torch.testing.assert_close(student(**alone).logits[0], found[row], rtol=1e-4, atol=1e-5)
    student.save_pretrained(tmp_path / "student")
    again = CLASSIFIER.student.from_pretrained(tmp_path / "student").eval()
    torch.testing.assert_close(again(**inputs).logits, found, rtol=1e-5, atol=1e-6)
    assert again.config.id2label == dict(enumerate(NAMES)) and again.config.num_labels == 3


def test_what_is_measured_is_of_labels(folder: Path, corpus: Corpus):
    """Cross-entropy of the labels, KL of the classes, and the likeliest, in whatever batches they are read."""
    teacher = load(folder)
    student = build_student(teacher, tiny.MIXER).eval()
    device = torch.device("cpu")
    whole = read(student, corpus.evaluation("words", 30), device, CLASSIFIER, teacher)
    batch = batch_of(corpus, 30)
    found, target = student(**CLASSIFIER.inputs(batch)).logits.double(), teacher.predict(batch).double()
    torch.testing.assert_close(whole.nll.mean(), cross_entropy(found, batch["labels"]), rtol=1e-5, atol=1e-6)
    divergence = kl_div(found.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
    assert whole.divergence == pytest.approx(divergence.item(), rel=1e-4)
    assert torch.equal(whole.predicted[:, 0], found.argmax(-1)) and torch.equal(whole.targets[:, 0], batch["labels"])
    assert whole.tokens == len(batch["labels"]) == len(corpus.validation["words"])
    alone = read(student, corpus.evaluation("words", 1), device, CLASSIFIER, teacher)
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def corrcoef(found: Tensor, meant: Tensor) -> float:
    """Correlation of one-hot rows over all classes: Σ_k cov(X_k, Y_k) over the root of both variances."""
    x, y = (each.double() - each.double().mean(0) for each in (found, meant))
    return ((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()).item()


def reading(predicted: list[int], labels: list[int]) -> Reading:
    found, right = (torch.tensor(each)[:, None] for each in (predicted, labels))
    return Reading(torch.zeros(len(labels)), found, right)


def test_scores_by_hand():
    labels, found = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    tp, fp, fn, tn = 2, 1, 1, 4
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {"accuracy": 6 / 8, "f1": 2 * tp / (2 * tp + fp + fn), "mcc": matthews}
    assert score(reading(found, labels), 2, 1) == pytest.approx(expected)
    other = 2 * tn / (2 * tn + fn + fp)
    assert score(reading(found, labels), 2, 0)["f1"] == pytest.approx(other)
    # Always the same answer is no better than chance.
    assert score(reading([0] * 8, labels), 2, 1)["mcc"] == score(reading([1] * 8, [1] * 8), 2, 1)["mcc"] == 0
    three, meant = [0, 1, 2, 1, 0, 2, 2], [0, 1, 2, 2, 0, 1, 2]
    whole = corrcoef(one_hot(torch.tensor(three)), one_hot(torch.tensor(meant)))
    assert score(reading(three, meant), 3, 1)["mcc"] == pytest.approx(whole)
    # Of more than two labels F1 is the mean over all.
    assert score(reading([0, 1, 1], [0, 1, 2]), 3, 1)["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_what_a_student_keeps():
    labels = [0, 1, 0, 1]
    teacher, student = reading([0, 1, 0, 0], labels), reading([0, 1, 1, 0], labels)
    kept = compared({"teacher": teacher, "student": student}, 2, 1)
    assert kept["accuracy"] == pytest.approx(
        {"teacher": 0.75, "student": 0.5, "recovery": 2 / 3, "error": 0.25, "constant": 0.5}
    )
    # The most frequent label, not the rarest.
    three = reading([0, 1, 1, 1], [0, 1, 1, 1])
    assert compared({"teacher": three, "student": three}, 2, 1)["accuracy"]["constant"] == 0.75
    assert set(kept["f1"]) == {"teacher", "student", "recovery"}
    chance = reading([0, 0, 0, 0], labels)
    assert compared({"teacher": chance, "student": student}, 2, 1)["mcc"]["recovery"] is None


@pytest.mark.parametrize(("teacher", "student", "said", "unsaid"), [
    (0.9, 0.8, "keeps 88.9 % on words of its teacher's accuracy.", "no better"),
    (0.9, 0.88, "within two standard errors", "no better"),
    (0.5, 0.5, "On words the teacher is no better than one answer to all", "never"),
])  # fmt: skip
def test_the_verdict_tells_what_is_kept_and_whether_that_means_something(
    teacher: float, student: float, said: str, unsaid: str
):
    accuracy = {"teacher": teacher, "student": student, "recovery": student / teacher, "error": 0.02, "constant": 0.5}
    found = _right({"scores": {"words": {"accuracy": accuracy}}}).replace("\N{NO-BREAK SPACE}", " ")
    assert said in found and unsaid not in found
    assert ("level" in found) is (abs(teacher - student) <= 0.04)


# The whole story


@pytest.fixture(scope="module")
def run(folder: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    given = [f"teacher.path={folder}", f"+data.domains.words={{path:{table},pair:other}}", f"run_dir={path}"]
    # Far enough that the labels tell.
    longer = ["stages.finetune.max_steps=60", "stages.finetune.learning_rate=1e-2", "stages.finetune.batch_size=32"]
    return distil(compose(*SHORT, *given, *longer, "measure.teacher_tuned=true"))


def test_a_run_is_whole(run: Path):
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    scores = headline["scores"]["words"]
    assert set(scores) == {"accuracy", "f1", "mcc"}
    assert set(scores["accuracy"]) == {
        "teacher",
        "matched",
        "student",
        "teacher_tuned",
        "recovery",
        "error",
        "constant",
    }
    assert headline["evaluation_tokens"]["words"] == 15 and headline["state_bytes"] is None
    # A teacher of random weights, and labels that say what it does not.
    assert scores["accuracy"]["student"] > scores["accuracy"]["matched"] + 0.2
    assert headline["student_ppl"]["words"] < headline["matched_ppl"]["words"]
    # The control has the steps of both stages that train the student.
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(step["step"] for step in steps if step["stage"] == "teacher_tuned") == 3 + 60
    fidelity = json.loads((run / "measurements" / "fidelity.json").read_text())
    assert all(each > 0 for layer in fidelity["domains"]["words"]["kl"] for each in layer)
    assert 0 < fidelity["tokens"] < 3 * tiny.CONTEXT


class Silent(torch.nn.Module):
    """Attention that says nothing."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(query), None


@torch.no_grad()
def test_what_attention_contributes_is_told_in_right_answers(run: Path, corpus: Corpus):
    right = json.loads((run / "measurements" / "contribution.json").read_text())["accuracy"]
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    assert right["student"]["words"] == headline["scores"]["words"]["accuracy"]["student"]
    student = CLASSIFIER.student.from_pretrained(run / "student").eval()
    for layer in student.config.layers:
        student.lm.get_submodule(layer["module"]).mixer = Silent()
    texts = batch_of(corpus, 15)
    answers = CLASSIFIER.predict(student, texts).argmax(-1)
    assert right["zero"]["words"] == pytest.approx((answers == texts["labels"]).double().mean().item())
    assert right["zero"]["words"] < right["student"]["words"] and set(right) == {
        "student",
        "zero",
        "uniform",
        "key_weight",
    }
    page = (run / "report" / "report.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    told = " against ".join(f"{100 * right[who]['words']:.1f} %" for who in ("zero", "student"))
    assert f"Without attention its accuracy would be {told} on words." in page


def test_everything_tells_the_scores(run: Path):
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    accuracy = headline["scores"]["words"]["accuracy"]
    card, report = (run / "student/README.md").read_text(), (run / "report/report.md").read_text()
    assert f"| words | accuracy | {accuracy['teacher']:.1%} | {accuracy['student']:.1%} |" in card
    assert "AutoModelForSequenceClassification" in card and "same label" in card
    assert "of its teacher's accuracy" in report and "Right answers, and what is kept" in report
    assert "After stage 2" in report and "Fine-tuning, the text's own targets" in report and "Texts read" in report


def test_columns_of_the_summary_stay_apart():
    assert [cell(value, 10, 2) for value in (None, 52.284, 1.25e20)] == ["         –", "     52.28", "  1.25e+20"]


def test_the_summary_tells_the_scores(run: Path):
    told = RunDirectory.__new__(RunDirectory)
    told.path, told.seconds, told.ways = run, {}, {}
    lines = summary(told, told.student).splitlines()
    assert any(
        line.split()[:2] == ["words", "accuracy"] and line.count("%") == 4 and "of 15 texts" in line for line in lines
    )


def test_an_exported_student_answers_as_the_original(run: Path, tmp_path: Path):
    """Without distill, through transformers' pipeline, by the names of the labels; pairs and padding included."""
    script = """
import sys
sys.modules["distill"] = None
import json
from transformers import pipeline
folder, texts = sys.argv[1:]
ask = pipeline("text-classification", model=folder, trust_remote_code=True, top_k=None)
print(json.dumps(ask(json.loads(texts), batch_size=4)))
"""
    texts = [{"text": row["text"], "text_pair": row["other"]} for row in rows(4, seed=1)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-c", script, str(run / "student"), json.dumps(texts)]
    out = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    student = CLASSIFIER.student.from_pretrained(run / "student").eval()
    words = AutoTokenizer.from_pretrained(run / "student")
    inputs = words(*([each[key] for each in texts] for key in ("text", "text_pair")), return_tensors="pt", padding=True)
    expected = student(**inputs).logits.softmax(-1)
    for answer, chances in zip(json.loads(out.splitlines()[-1]), expected, strict=True):
        assert {each["label"]: pytest.approx(each["score"], abs=1e-4) for each in answer} == dict(
            zip(NAMES, chances.tolist(), strict=True)
        )


@pytest.mark.parametrize("name", ["linformer", "hedgehog", "nonstationary-signed", "favor"])
def test_other_mixers(made: Callable[..., Config], name: str):
    path = distil(made(f"mixer={name}", *([] if name == "nonstationary-signed" else ["mixer.features=16"])))
    headline = json.loads((path / "measurements" / "headline.json").read_text())
    assert math.isfinite(headline["student_ppl"]["words"]) and "matched" not in headline["scores"]["words"]["accuracy"]


# Training a teacher


TEACHER = ["goal=teacher", "stages.pretrain.max_steps=120", "stages.pretrain.batch_size=16"]


def test_a_classifier_is_trained_from_nothing(made: Callable[..., Config], table: Path, tmp_path: Path):
    bert = {"model_type": "bert", **ENCODERS["bert"]}
    shape = "{" + ",".join(f"{key}:{value}" for key, value in bert.items()) + "}"
    wanted = made(
        *TEACHER, "teacher.path=null", "teacher.vocabulary=300", f"teacher.architecture={shape}",
        "stages.pretrain.learning_rate=5e-3",
    )  # fmt: skip
    teacher = load(PIPELINES["teacher"](wanted) / "teacher")
    assert teacher.classes == NAMES
    words = teacher.tokenizer
    ends = words.convert_ids_to_tokens(words("calm", "bad")["input_ids"])
    assert ends[0] == "[CLS]" and ends.count("<|endoftext|>") == 2 and ends[-1] == "<|endoftext|>"
    card = (tmp_path / "run" / "teacher" / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| words |")]
    assert float(row.split("|")[4].strip(" %")) > 70 and "trained from scratch" in card
    assert "| held-out text | labels | perplexity at context 32 | accuracy | f1 | mcc |" in card


def test_a_classifier_is_made_of_an_encoder(made: Callable[..., Config], words: Any, tmp_path: Path):
    """Its body goes on from where it was, under a head of its own."""
    encoder = AutoModelForMaskedLM.from_config(model("bert", words).config)
    encoder.save_pretrained(tmp_path / "encoder")
    words.save_pretrained(tmp_path / "encoder")
    wanted = made(
        "goal=teacher",
        f"teacher.path={tmp_path / 'encoder'}",
        "stages.pretrain.max_steps=1",
        "stages.pretrain.learning_rate=1e-6",
    )
    teacher = load(PIPELINES["teacher"](wanted) / "teacher")
    assert teacher.classes == NAMES
    body, before = teacher.model.bert.encoder.state_dict(), encoder.bert.encoder.state_dict()
    for name, each in body.items():
        torch.testing.assert_close(each, before[name], rtol=1e-2, atol=1e-3)
    card = (tmp_path / "run" / "teacher" / "README.md").read_text()
    assert f"trained from `{tmp_path / 'encoder'}`" in card


def test_a_teacher_starts_from_one_thing(made: Callable[..., Config]):
    for changes, message in (
        (["teacher.path=null"], "needs teacher.vocabulary and teacher.architecture, or teacher.path"),
        (["teacher.vocabulary=300"], "set teacher.path=null to begin anew"),
    ):
        with pytest.raises(UserError, match=message):
            PIPELINES["teacher"](made("goal=teacher", *changes))
