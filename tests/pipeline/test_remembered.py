"""The teacher's predictions on disk: what is kept of them, what is lost, and that a second run does without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.checks import check
from distill.divergence import divergence, top_k_kl
from distill.errors import UserError
from distill.pipeline import distil
from distill.remembered import Remembered
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import NO_TARGET
from distill.teacher import Teacher

from . import tiny
from .conftest import SMALL, compose
from .test_teacher import ids, load

LENGTH = ids().shape[1]


@pytest.fixture
def teacher(teachers: dict[str, Path]) -> Teacher:
    return load(teachers["llama"])


def forget(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that has nothing more to say."""

    def mute(batch: Any) -> Tensor:
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(teacher, "predict", mute)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_kl_of_the_likeliest_and_the_rest(k: int):
    """In float64 by a loop, values and gradients; all of the KL where k is all, and never more."""
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 7, dtype=torch.float64) * 3
    student = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    log_likeliest, tokens = teacher.log_softmax(-1).topk(k)
    total = torch.zeros((), dtype=torch.float64)
    for p, s in zip(teacher.softmax(-1).flatten(0, 1), student.softmax(-1).flatten(0, 1), strict=True):
        likeliest = p.argsort(descending=True)[:k]
        parts = [(p[token], s[token]) for token in likeliest]
        if k < 7:
            parts.append((1 - p[likeliest].sum(), 1 - s[likeliest].sum()))
        total = total + sum(one * (one.log() - other.log()) for one, other in parts) / 6
    found = top_k_kl(log_likeliest, tokens, student)
    torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(each, student, retain_graph=True)[0] for each in (found, total)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
    whole = divergence(teacher, student).mean()
    assert found < whole if k < 7 else torch.isclose(found, whole)
    assert top_k_kl(log_likeliest, tokens, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("side", ["none", "right"])
def test_what_is_read_is_what_was_said(side: str, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second time from the file, in other company, by another connection, and without the teacher."""
    batch = {"input_ids": ids()}
    if side == "right":
        batch["attention_mask"] = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [5]])).long()
    batch = {name: each[:2] for name, each in batch.items()}
    expected, likeliest = teacher.predict(batch).log_softmax(-1).topk(4)
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])) != 0
    Remembered(teacher, tmp_path, 4, "32-true")(batch)
    forget(teacher, monkeypatch)
    again = Remembered(teacher, tmp_path, 4, "32-true")
    for rows in ([0, 1], [1], [1, 0, 1]):
        log_likeliest, tokens = again({name: each[rows] for name, each in batch.items()})
        assert torch.equal(log_likeliest[real[rows]], expected[rows][real[rows]])
        assert torch.equal(tokens[real[rows]], likeliest[rows][real[rows]])
        assert not log_likeliest[~real[rows]].any() and not tokens[~real[rows]].any()
    with pytest.raises(AssertionError, match="the teacher ran"):
        again({"input_ids": batch["input_ids"].flip(1)})


def test_padding_is_no_part_of_a_row(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = {"input_ids": ids()[:1, :5]}
    remembered = Remembered(teacher, tmp_path, 4, "32-true")
    alone, _ = remembered(short)
    forget(teacher, monkeypatch)
    longer = {"input_ids": torch.cat([short["input_ids"], torch.zeros(1, 3, dtype=torch.long)], 1)}
    found, _ = remembered(longer | {"attention_mask": torch.tensor([[1] * 5 + [0] * 3])})
    assert torch.equal(found[:, :5], alone)


def test_a_file_is_of_one_teacher_run_one_way(teacher: Teacher, teachers: dict[str, Path], tmp_path: Path):
    def name(each: Teacher, k: int = 4, how: str = "32-true") -> str:
        return Remembered(each, tmp_path, k, how).file.name

    first, every = name(teacher), name(teacher, 10**6)
    assert name(load(teachers["llama"])) == first and every.endswith(f"-{tiny.VOCABULARY}.sqlite")
    made = [first, every, name(teacher, 5), name(teacher, how="bf16-mixed"), name(load(teachers["gpt2"]))]
    # The same weights may say something else under another configuration.
    teacher.model.config.rms_norm_eps *= 2
    assert len({*made, name(teacher)}) == 6


def test_several_runs_may_write_the_same_rows(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = (Remembered(teacher, tmp_path, 4, "32-true") for _ in range(2))
    batch = {"input_ids": ids()}
    ask = one._ask
    # The other run is faster.
    monkeypatch.setattr(one, "_ask", lambda *rest: (other(batch), ask(*rest))[1])
    assert torch.equal(one(batch)[0], other(batch)[0])


def test_the_default_dtype_does_not_matter(teacher: Teacher, tmp_path: Path):
    """As under trainer.precision=bf16-true."""
    expected = Remembered(teacher, tmp_path, 4, "32-true")({"input_ids": ids()})[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = Remembered(teacher, tmp_path, 4, "32-true")({"input_ids": ids()})[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_teacher_that_is_sure_of_all_it_says():
    """In float32 the likeliest can come to a little more than one."""
    torch.manual_seed(0)
    teacher = torch.randn(4000, 50) * 20
    log_likeliest, tokens = teacher.log_softmax(-1).topk(8)
    assert (log_likeliest.exp().sum(-1) > 1).any()
    assert top_k_kl(log_likeliest, tokens, torch.randn(4000, 50)).isfinite()


@pytest.mark.parametrize("chat", [False, True])
def test_stage_2_with_all_of_them_is_stage_2(chat: bool, teacher: Teacher, tmp_path: Path):
    wanted = compose("recipe=pocket", *SMALL).stages.logits
    student, batch = build_student(teacher, tiny.MIXER), {"input_ids": ids()[:2]}
    if chat:
        real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [9]])
        said = real & (torch.arange(LENGTH) > 4)
        batch |= {"attention_mask": real.long(), "labels": batch["input_ids"].masked_fill(~said, NO_TARGET)}
    plain = LogitsStage(teacher, student, wanted).training_step(batch, 0)
    whole = Remembered(teacher, tmp_path, tiny.VOCABULARY, "32-true")
    torch.testing.assert_close(LogitsStage(teacher, student, wanted, whole).training_step(batch, 0), plain)
    some = LogitsStage(teacher, student, wanted, Remembered(teacher, tmp_path, 8, "32-true")).training_step(batch, 0)
    assert 0.2 * plain < some < plain


def test_runs_share_what_is_kept(
    teachers: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A second run reads all of it, and ends as the first did."""

    def run(name: str, *overrides: str) -> list[dict[str, Any]]:
        given = [f"teacher.path={teachers['llama']}", f"data.path={text}", f"run_dir={tmp_path / name}"]
        path = distil(compose("recipe=pocket", *SMALL, *given, f"stages.logits.cache={tmp_path / 'kept'}", *overrides))
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{**line, "seconds": 0} for line in lines]

    said: list[int] = []
    ask: Callable[..., list[bytes]] = Remembered._ask
    monkeypatch.setattr(Remembered, "_ask", lambda self, *rest: (found := ask(self, *rest), said.append(len(found)))[0])
    first = run("one")
    assert sum(said) == 6 and len(list((tmp_path / "kept").glob("*.sqlite"))) == 1
    assert run("two") == first and sum(said) == 6
    # Another mixer reads the same rows.
    assert run("three", "mixer=hedgehog") != first and sum(said) == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.logits.temperature=2"], r"^stages\.logits\.temperature=2\.0: what is cached is at temperature 1"),
        (["task=masked_lm", "mixer=elu"], r"^stages\.logits\.cache=kept is for task=causal_lm, [^\n]*; leave it out$"),
        (["stages.logits.cache=true"], r"^stages\.logits\.cache=True is no folder; name one, or leave it out$"),
        (["stages.logits.cache="], r"^stages\.logits\.cache= is no folder"),
        (["stages.logits.top_k=0"], r"^stages\.logits\.top_k=0 must be a whole number of at least 1$"),
    ],
)
def test_what_cannot_be_kept_is_refused(overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        check(compose("recipe=pocket", "mixer=elu", "stages.logits.cache=kept", *overrides))


def test_a_file_that_cannot_be_used_is_told(teacher: Teacher, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^stages\.logits\.cache: [^\n]*file[^\n]* cannot be used, [^\n]*; remove it, "
    ):
        Remembered(teacher, tmp_path / "file", 4, "32-true")
    whole = Remembered(teacher, tmp_path, 4, "32-true")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / whole.file.name).write_bytes(b"no database at all, only text" * 100)
    with pytest.raises(UserError, match="not a database"):
        Remembered(teacher, tmp_path / "junk", 4, "32-true")
    whole.store.execute("DROP TABLE rows")
    with pytest.raises(UserError, match="no such table"):
        whole({"input_ids": ids()})


def test_a_teacher_that_is_remembered_makes_room(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = compose("recipe=pocket", *SMALL).stages.logits
    stage = LogitsStage(
        teacher, build_student(teacher, tiny.MIXER), wanted, Remembered(teacher, tmp_path, 4, "32-true")
    )
    moved: list[torch.device] = []
    monkeypatch.setattr(teacher, "to", moved.append)
    stage.to("meta").on_fit_start()
    stage.remembered = None
    stage.on_fit_start()
    assert [each.type for each in moved] == ["cpu", "meta"]
