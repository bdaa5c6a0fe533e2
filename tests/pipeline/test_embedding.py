"""Sentence-embedding models: how texts are pooled, what stage 2 matches, and the student that they are handed on as."""

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
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from distill.checks import check
from distill.config import Config
from distill.data import Corpus, prepare
from distill.errors import UserError
from distill.flexformer.pooling import pooled
from distill.measure.perplexity import Reading, read
from distill.measure.scores import compared
from distill.pipeline import PIPELINES, distil
from distill.report.verdict import _right
from distill.scratch import train_tokenizer
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import TASKS, pooling

from . import test_teacher, tiny
from .conftest import compose
from .families import ENCODERS, configuration

EMBEDDING = TASKS["embedding"]
#: How the teacher is used: its prompts are handed on.
USE = {"prompts": {"query": "cafe "}, "similarity_fn_name": "cosine"}
SHORT = [
    "recipe=minilm",
    "data=text",
    "data.path=null",
    f"data.context={tiny.CONTEXT}",
    "data.validation_blocks=16",
    "mixer.features=16",
    *(f"stages.{stage}.max_steps=3" for stage in ("pretrain", "attention", "logits")),
    *(f"stages.{stage}.batch_size=4" for stage in ("pretrain", "attention", "logits")),
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "measure.batch_size=8",
    "measure.fidelity_blocks=3",
    "measure.map_tokens=8",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many lengths, and partners with the same words in another order."""
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    texts = [line.split()[: 2 + number % 7] for number, line in enumerate(tiny.prose(0, 120).splitlines())]
    path.write_text("\n".join(json.dumps({"text": " ".join(each), "other": " ".join(each[::-1])}) for each in texts))
    return path


@pytest.fixture(scope="module")
def words() -> Any:
    return train_tokenizer([tiny.prose(0, 120)], tiny.VOCABULARY, EMBEDDING)


def model(family: str, words: Any, auto: Any = AutoModel) -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "initializer_range": 0.3}
    return auto.from_config(configuration(family, ENCODERS[family] | shape))


def save(path: Path, words: Any, family: str = "bert", auto: Any = AutoModel) -> Path:
    model(family, words, auto).save_pretrained(path)
    words.save_pretrained(path)
    return path


def say(path: Path, modules: list[str], pool: dict[str, Any] | None = None) -> Path:
    """What sentence-transformers says beside a model."""
    path.mkdir(exist_ok=True)
    places = ["" if kind == "Transformer" else f"{number}_{kind}" for number, kind in enumerate(modules)]
    listed = [{"type": f"some.where.{kind}", "path": place} for kind, place in zip(modules, places, strict=True)]
    (path / "modules.json").write_text(json.dumps(listed))
    if pool is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling/config.json").write_text(json.dumps(pool))
    return path


@pytest.fixture(scope="module")
def folder(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `teacher.path` takes, which says of itself that it pools the first token, without a length."""
    path = save(tmp_path_factory.mktemp("embedder"), words)
    (path / "config_sentence_transformers.json").write_text(json.dumps(USE))
    return say(path, ["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})


load = partial(test_teacher.load, task="embedding")


@pytest.fixture
def made(folder: Path, table: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        domain = f"+data.domains.words={{path:{table},pair:other}}"
        return compose(*SHORT, f"teacher.path={folder}", domain, f"run_dir={tmp_path / 'run'}", *overrides)

    return make


@pytest.fixture
def corpus(made: Callable[..., Config], words: Any) -> Corpus:
    return prepare(made().data, words, 0, EMBEDDING)


def batch_of(corpus: Corpus, size: int = 4) -> dict[str, Tensor]:
    return next(iter(corpus.evaluation("words", size)))


# Pooling


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_against_a_loop(side: str, mode: str, normalize: bool):
    """In float64, values and gradients, row b without its first or last b tokens."""
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3, 5, dtype=torch.long)
    for row in range(3):
        mask[row, {"left": slice(row), "right": slice(5 - row, 5), "none": slice(0)}[side]] = 0
    expected = []
    for row in range(3):
        real = [hidden[row, n] for n in range(5) if mask[row, n]]
        vector = sum(real) / len(real) if mode == "mean" else real[0]
        expected.append(vector / vector.square().sum().sqrt() if normalize else vector)
    found = pooled(hidden, None if side == "none" else mask, mode, normalize)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(found)
    (wanted,) = torch.autograd.grad((torch.stack(expected) * weights).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), hidden)[0], wanted, rtol=1e-12, atol=1e-12)
    assert pooled(hidden.bfloat16(), None, mode, normalize).dtype == torch.float32


@pytest.mark.parametrize(
    ("modules", "pool", "expected"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True}, {"mode": "mean", "normalize": False}),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_cls_token": True}, {"mode": "cls", "normalize": True}),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode": "cls", "embedding_dimension": 4},
            {"mode": "cls", "normalize": False},
        ),
        (["Transformer", "Pooling"], {"pooling_mode": ["mean"]}, {"mode": "mean", "normalize": False}),
    ],
)
def test_what_is_said_of_pooling(
    modules: list[str],
    pool: dict[str, Any],
    expected: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """In the words of older and newer releases."""
    assert pooling.read(str(say(tmp_path / "model", modules, pool))) == expected
    assert not capsys.readouterr().err
    # What is taken for granted is told.
    assert pooling.read(str(tmp_path)) == {"mode": "mean", "normalize": True}
    assert "has no modules.json: its embeddings are taken to be the mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("modules", "pool", "message"),
    [
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_max_tokens": True},
            r"pools by [a-z_]*max_tokens, known are mean, cls",
        ),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode": ["mean", "cls"]},
            "pools by mean and cls, known",
        ),
        (["Transformer", "Pooling"], {}, "pools by what its files do not say, known are mean, cls; choose another"),
        (["Transformer", "Pooling"], None, "pools by what its files do not say"),
        (["Transformer"], {}, "modules.json is not as sentence-transformers writes it"),
        (["Transformer", "Pooling", "Dense"], {}, "embeds through Dense, which a student would lack; choose another"),
    ],
)
def test_what_a_student_could_not_do_is_refused(modules: list[str], pool: Any, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=rf"^teacher\.path=[^\n]*{message}"):
        pooling.read(str(say(tmp_path / "model", modules, pool)))


@pytest.mark.parametrize("content", ["{", "[1]", "7", '[{"path": ""}]'])
def test_files_that_are_torn_are_told(content: str, tmp_path: Path):
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"^teacher\.path=[^\n]*: modules\.json [^\n]*$"):
        pooling.read(str(tmp_path))


def test_a_module_is_read_where_it_lies(tmp_path: Path):
    say(tmp_path, ["Transformer", "Normalize", "Pooling"])
    (tmp_path / "2_Pooling").mkdir()
    (tmp_path / "2_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert pooling.read(str(tmp_path)) == {"mode": "cls", "normalize": True}


def test_a_hub_that_cannot_be_asked_is_no_hub_without_the_file(monkeypatch: pytest.MonkeyPatch):
    """Or a model that pools otherwise would be taken for one by the mean."""

    def fails(error: Exception) -> None:
        def download(*args: Any) -> str:
            raise error

        monkeypatch.setattr(pooling, "hf_hub_download", download)

    fails(LocalEntryNotFoundError("no network"))
    with pytest.raises(
        UserError, match=r"^teacher\.path=some/model: whether it has a modules\.json cannot be looked up"
    ):
        pooling.read("some/model")
    fails(EntryNotFoundError("not there"))
    assert pooling.read("some/model") == pooling.PLAIN


@pytest.mark.parametrize("wanted", [{"mode": "cls", "normalize": False}, {"mode": "mean", "normalize": True}])
@pytest.mark.parametrize("said", [None, {"prompts": {"query": "ask: "}, "default_prompt_name": None}])
def test_what_is_left_beside_a_model_says_the_same(wanted: dict[str, Any], said: Any, tmp_path: Path):
    pooling.save(tmp_path, wanted, said, 16, 32)
    assert pooling.read(str(tmp_path)) == wanted and pooling.use(str(tmp_path)) == said
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 32


# The task


def test_a_text_is_sought_among_all_partners():
    """−log p is InfoNCE: of the cosines over 0.05, whatever the lengths."""
    torch.manual_seed(0)
    embeddings = torch.randn(6, 4) * torch.rand(6, 1)
    logits, targets = EMBEDDING.targets(embeddings, {})
    assert logits.shape == (3, 1, 3) and targets.tolist() == [[0], [1], [2]]
    for text in range(3):
        for partner in range(3):
            cosine = cosine_similarity(embeddings[text], embeddings[3 + partner], dim=0)
            torch.testing.assert_close(logits[text, 0, partner], cosine / 0.05)
    expected = -logits[:, 0].log_softmax(-1).diagonal()
    torch.testing.assert_close(EMBEDDING.nll(embeddings, {})[:, 0], expected)
    torch.testing.assert_close(EMBEDDING.loss(embeddings, {}), expected.mean())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EMBEDDING.targets(embeddings, {})[0], logits)


def test_stage_2_matches_the_embeddings(folder: Path, corpus: Corpus, made: Callable[..., Config]):
    teacher, batch = load(folder), batch_of(corpus)
    student = build_student(teacher, tiny.MIXER)
    wanted = made("stages.logits.cross_entropy=0.5").stages.logits
    stage = LogitsStage(teacher, student, wanted)
    loss = stage.training_step(batch, 0)
    target, found = teacher.predict(batch), EMBEDDING.predict(student, batch)
    far = ((target - found) ** 2).sum(1) / (target**2).sum(1)
    torch.testing.assert_close(loss, far.mean() + 0.5 * EMBEDDING.loss(found, batch))
    loss.backward()
    assert all(
        each.grad is not None and each.grad.any() for mixer in student.mixers.values() for each in mixer.parameters()
    )
    # A shift is seen although no cosine need change.
    assert EMBEDDING.gap(target, 2 * target, batch, 1.0).item() == pytest.approx(1.0)
    torch.testing.assert_close(EMBEDDING.cosine(target, 2 * target), torch.ones(len(target) // 2))


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family(family: str, words: Any, corpus: Corpus, tmp_path: Path):
    """Exact layers give the teacher's embeddings, padding included; one with mixers reloads and ignores padding."""
    teacher, batch = load(save(tmp_path / family, words, family)), batch_of(corpus)
    assert not batch["attention_mask"].all()
    exact = build_student(teacher, tiny.MIXER | {"exact_layers": "all"}).eval()
    torch.testing.assert_close(EMBEDDING.predict(exact, batch), teacher.predict(batch), rtol=1e-4, atol=1e-4)
    student = build_student(teacher, tiny.MIXER).eval()
    found = student(**EMBEDDING.inputs(batch)).pooler_output
    torch.testing.assert_close(found, EMBEDDING.predict(student, batch))
    torch.testing.assert_close(found.square().sum(-1), torch.ones(len(found)))
    assert not torch.isclose(found, teacher.predict(batch), atol=1e-3).all()
    for row in range(len(found)):
        alone = {name: each[row : row + 1, batch["attention_mask"][row] != 0] for name, each in batch.items()}
        torch.testing.assert_close(student(**alone).pooler_output[0], found[row], rtol=1e-4, atol=1e-5)
    student.save_pretrained(tmp_path / "student")
    again = EMBEDDING.student.from_pretrained(tmp_path / "student").eval()
    torch.testing.assert_close(again(**batch).pooler_output, found, rtol=1e-5, atol=1e-6)


def test_a_teacher_needs_its_body_but_no_pooler(words: Any, made: Callable[..., Config], tmp_path: Path):
    """A masked language model has none, and no embedding is read from it."""
    path = save(tmp_path / "encoder", words, auto=AutoModelForMaskedLM)
    teacher = load(path)
    torch.manual_seed(7)
    # What is spared is not left to chance, or no two runs would have the same teacher.
    assert load(path).weights_hash() == teacher.weights_hash()
    assert teacher.classes is None and teacher.model.config.sentence_pooling == {"mode": "mean", "normalize": True}
    torn = teacher.model.state_dict()
    teacher.model.save_pretrained(tmp_path / "torn", state_dict={k: v for k, v in torn.items() if "layer.1" not in k})
    words.save_pretrained(tmp_path / "torn")
    with pytest.raises(UserError, match=r"torn has no encoder\.layer\.1\.[^\n]*: it was not trained for this task"):
        load(tmp_path / "torn")
    with pytest.raises(UserError, match=r"torn has no encoder\.layer\.1\.[^\n]* of the shape"):
        PIPELINES["teacher"](made("goal=teacher", f"teacher.path={tmp_path / 'torn'}"))


def test_what_is_measured(folder: Path, corpus: Corpus):
    teacher = load(folder)
    student = build_student(teacher, tiny.MIXER).eval()
    (held,) = corpus.validation.values()
    found = read(student, corpus.evaluation("words", len(held)), torch.device("cpu"), EMBEDDING, teacher)
    batch = batch_of(corpus, len(held))
    target, made = teacher.predict(batch), EMBEDDING.predict(student, batch)
    near = cosine_similarity(target, made, dim=-1)
    torch.testing.assert_close(found.cosine, ((near[: len(held)] + near[len(held) :]) / 2).double())
    assert found.targets[:, 0].tolist() == list(range(len(held))) and found.tokens == len(held)
    texts, others = (each / each.norm(dim=-1, keepdim=True) for each in made.chunk(2))
    assert torch.equal(found.predicted[:, 0], (texts @ others.T).argmax(1))
    assert read(student, corpus.evaluation("words", 4), torch.device("cpu"), EMBEDDING).cosine is None


def test_every_text_is_sought_among_as_many(made: Callable[..., Config], words: Any):
    """What is left for a smaller batch would be easier, and is not read."""
    corpus = prepare(made("data.validation_blocks=6").data, words, 0, EMBEDDING)
    sizes = [len(batch["input_ids"]) for batch in corpus.evaluation("words", 4)]
    assert sizes == [8] and [len(batch["input_ids"]) for batch in corpus.evaluation("words", 9)] == [12]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measure.batch_size=1", r"^measure\.batch_size=1: a text's partner is sought among those of a batch; give"),
        ("stages.pretrain.batch_size=1", r"^stages\.pretrain\.batch_size=1: "),
        ("stages.logits.temperature=2", r"^stages\.logits\.temperature=2\.0: embeddings are matched as they are"),
        ("stages.logits.batch_size=1", ""),
    ],
)
def test_what_says_nothing_is_refused(override: str, message: str, made: Callable[..., Config]):
    if not message:
        return check(made(override))
    with pytest.raises(UserError, match=message):
        check(made(override))


def test_scores_are_accuracy_and_cosine():
    targets = torch.arange(4)[:, None]
    teacher = Reading(torch.zeros(4), targets, targets)
    student = Reading(
        torch.zeros(4), torch.tensor([[0], [1], [2], [0]]), targets, cosine=torch.tensor([1.0, 0.9, 0.8, 0.9])
    )
    kept = compared({"teacher": teacher, "student": student}, 0, 1)
    assert kept["accuracy"] == pytest.approx(
        {"teacher": 1.0, "student": 0.75, "recovery": 0.75, "error": 0.25, "constant": 0.25}
    )
    assert kept["cosine"] == pytest.approx({"teacher": 1.0, "student": 0.9, "recovery": 0.9}) and len(kept) == 2
    said = _right({"scores": {"words": kept}}).replace("\N{NO-BREAK SPACE}", " ")
    assert "Its embeddings' cosine to the teacher's is 90.0 % on words." in said


# The whole story


@pytest.fixture(scope="module")
def run(folder: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    given = [f"teacher.path={folder}", f"+data.domains.words={{path:{table},pair:other}}", f"run_dir={path}"]
    return distil(compose(*SHORT, *given, "stages.logits.max_steps=60", "stages.logits.learning_rate=1e-3"))


def test_a_run_is_whole(run: Path):
    headline = json.loads((run / "measurements/headline.json").read_text())
    scores = headline["scores"]["words"]
    assert set(scores) == {"accuracy", "cosine"} and headline["state_bytes"] is None
    assert headline["stage1_ppl"]["words"] > 1 and 0 < headline["kl"]["words"] < math.inf
    card, report = (run / "student/README.md").read_text(), (run / "report/report.md").read_text()
    folders = [path for path in (run / "student").iterdir() if path.is_dir()]
    assert folders and all(path.stat().st_mode & 0o100 for path in folders)
    assert f"| words | cosine | 100.0% | {scores['cosine']['student']:.1%} |" in card and "same partner" in card
    assert "embeddings' cosine to the teacher's" in report and "cosine to teacher" in report
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if step["stage"] == "logits"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_student_says_how_it_pools(run: Path):
    assert pooling.read(str(run / "student")) == {"mode": "cls", "normalize": False}
    told = json.loads((run / "student/sentence_bert_config.json").read_text())
    assert told["max_seq_length"] == tiny.CONTEXT and pooling.use(str(run / "student")) == USE
    # As many as there are, fewer than measure.batch_size.
    assert "sought among 6, by cosine" in (run / "student/README.md").read_text()


def test_an_exported_student_answers_as_the_original(run: Path, tmp_path: Path):
    """Without distill, through AutoModel, as its card says."""
    script = """
import sys
sys.modules["distill"] = None
import json
from transformers import AutoModel, AutoTokenizer
folder, texts = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(json.dumps(model(**tokenizer(json.loads(texts), padding=True, return_tensors="pt")).pooler_output.tolist()))
"""
    texts = ["abba cafe", "bad fade deed abba"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-c", script, str(run / "student"), json.dumps(texts)]
    out = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    student = EMBEDDING.student.from_pretrained(run / "student").eval()
    inputs = AutoTokenizer.from_pretrained(run / "student")(texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(
        torch.tensor(json.loads(out.splitlines()[-1])), student(**inputs).pooler_output, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes", [["stages.logits.train=lora"], ["mixer=linformer"], ["stages.finetune.max_steps=2"]]
)
def test_other_ways(made: Callable[..., Config], changes: list[str]):
    path = distil(made(*changes))
    assert (
        0 < json.loads((path / "measurements/headline.json").read_text())["scores"]["words"]["cosine"]["student"] <= 1
    )


def test_an_embedder_is_trained(made: Callable[..., Config], tmp_path: Path):
    """From nothing, by its partners alone, and from where it was."""
    shape = "{" + ",".join(f"{key}:{value}" for key, value in {"model_type": "bert", **ENCODERS["bert"]}.items()) + "}"
    new = ["teacher.path=null", f"teacher.vocabulary={tiny.VOCABULARY}", f"teacher.architecture={shape}"]
    fast = ["stages.pretrain.max_steps=60", "stages.pretrain.batch_size=16", "stages.pretrain.learning_rate=5e-3"]
    path = PIPELINES["teacher"](made("goal=teacher", *new, *fast)) / "teacher"
    (row,) = [line for line in (path / "README.md").read_text().splitlines() if line.startswith("| words |")]
    assert float(row.split("|")[4].strip(" %")) > 40 and load(path).model.config.sentence_pooling["mode"] == "mean"
    on = made(
        "goal=teacher", f"teacher.path={path}", "stages.pretrain.learning_rate=1e-7", f"run_dir={tmp_path / 'on'}"
    )
    again, before = load(PIPELINES["teacher"](on) / "teacher"), load(path)
    for name, each in again.model.encoder.state_dict().items():
        torch.testing.assert_close(each, before.model.encoder.state_dict()[name], rtol=1e-2, atol=1e-3)


def test_a_teacher_made_of_another_pools_as_it_did(made: Callable[..., Config], folder: Path):
    path = PIPELINES["teacher"](made("goal=teacher", f"teacher.path={folder}")) / "teacher"
    assert load(path).model.config.sentence_pooling == {"mode": "cls", "normalize": False}
    assert pooling.use(str(path)) == USE
