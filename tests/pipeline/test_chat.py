"""Teachers that were trained on conversations: stage 2 matches, and is measured by, what the assistant says."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.config import Config
from distill.data import Corpus, prepare
from distill.errors import UserError
from distill.measure.perplexity import read
from distill.pipeline import PIPELINES, distil
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import DECODER, NO_TARGET
from distill.teacher import Teacher

from . import tiny
from .conftest import Compose
from .test_teacher import load

CONTEXT = 64
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, words = tmp_path_factory.mktemp("talks") / "talks.jsonl", tiny.prose(0, 60).split()
    rows = []
    for i in range(60):
        asked, answer = words[3 * i : 3 * i + 1 + i % 2], words[3 * i + 2 : 3 * i + 3 + i % 3]
        said = [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": " ".join(answer)}]
        rows.append(json.dumps({"messages": said}))
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(params=["gpt2", "llama"])
def teacher(request: pytest.FixtureRequest, teachers: dict[str, Path], tmp_path: Path) -> Path:
    """A directory that `teacher.path` takes, whose tokenizer has a template and no token for padding."""
    path = tmp_path / "speaker"
    loaded = load(teachers[request.param])
    loaded.model.save_pretrained(path)
    loaded.tokenizer.chat_template = TEMPLATE
    assert loaded.tokenizer.pad_token is None
    loaded.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def made(small: Compose, teacher: Path, talks: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        domain = f"+data.domains.talks={{path:{talks},messages:messages}}"
        return small(
            f"teacher.path={teacher}", "data=text", "data.path=null", domain, "data.validation_blocks=6",
            f"data.context={CONTEXT}", *overrides,
        )  # fmt: skip

    return make


@pytest.fixture
def corpus(made: Callable[..., Config], teacher: Path) -> Corpus:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(teacher)
    return prepare(made().data, tokenizer, 0)


def test_stage_2_matches_answers_alone(teacher: Path, corpus: Corpus, made: Callable[..., Config]):
    """The mean KL, and cross-entropy, of the predictions whose target the assistant says; values and gradients."""
    loaded = load(teacher)
    wanted = made("stages.logits.cross_entropy=0.5").stages.logits
    stage = LogitsStage(loaded, build_student(loaded, tiny.MIXER), wanted)
    (batch,) = corpus.batches(1, 8, seed=0)
    assert not batch["attention_mask"].all()
    found = stage.training_step(batch, 0)
    student, target = stage.student(**DECODER.inputs(batch)).logits, loaded.predict(batch)
    terms, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(8):
        for i in range(batch["labels"].shape[1] - 1):
            if (label := batch["labels"][b, i + 1]) != NO_TARGET:
                p, s = (each[b, i].double().log_softmax(-1) for each in (target, student))
                terms = terms + (p.exp() * (p - s)).sum() - 0.5 * s[label]
                count += 1
    torch.testing.assert_close(found.double(), terms / count, rtol=1e-4, atol=1e-6)
    mixers = [each for mixer in stage.student.mixers.values() for each in mixer.parameters()]
    ours, theirs = (torch.autograd.grad(each, mixers, retain_graph=True) for each in (found, terms / count))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right.to(mine.dtype), rtol=1e-3, atol=1e-5)


def test_what_is_measured_is_of_answers(teacher: Path, corpus: Corpus):
    """However the conversations are put together."""
    loaded: Teacher = load(teacher)
    student, device = build_student(loaded, tiny.MIXER).eval(), torch.device("cpu")
    together = read(student, corpus.evaluation("talks", 6), device, DECODER, loaded)
    alone = read(student, corpus.evaluation("talks", 1), device, DECODER, loaded)
    batches = list(corpus.evaluation("talks", 6))
    assert together.tokens == sum(int((batch["labels"][:, 1:] != NO_TARGET).sum()) for batch in batches)
    assert together.divergence == pytest.approx(alone.divergence, rel=1e-4)
    batch = batches[0]
    logits = student(**DECODER.inputs(batch)).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=NO_TARGET)
    assert math.log(together.perplexity) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mixer", ["exponential", "stationary-delta-window"])
def test_a_run_is_whole(made: Callable[..., Config], mixer: str):
    path = distil(made(f"mixer={mixer}", "mixer.features=16", *(["mixer.window=8"] if "window" in mixer else [])))
    headline = json.loads((path / "measurements/headline.json").read_text())
    assert math.isfinite(headline["ratio"]["talks"]) and headline["kl"]["talks"] > 0
    assert 0 < headline["tokens"]["logits"] < 3 * 2 * CONTEXT
    assert (path / "student/chat_template.jinja").is_file()


def test_a_teacher_is_trained_on_conversations(made: Callable[..., Config], tmp_path: Path):
    path = PIPELINES["teacher"](made("goal=teacher"))
    assert "| talks |" in (path / "teacher/README.md").read_text()
    scratch = ["teacher.path=null", "teacher.vocabulary=300", "teacher.architecture={model_type:gpt2}"]
    with pytest.raises(UserError, match="a tokenizer is not made from conversations; give"):
        PIPELINES["teacher"](made("goal=teacher", f"run_dir={tmp_path / 'other'}", *scratch))
