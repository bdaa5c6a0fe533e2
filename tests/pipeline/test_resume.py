"""A run that was killed goes on with resume=true, and comes to what it would have come to."""

import fcntl
import json
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

from distill import checkpoint, pipeline
from distill.config import Config
from distill.errors import UserError
from distill.launch import AT_ONCE
from distill.pipeline import PIPELINES, distil
from distill.progress import Progress
from distill.rundir import RunDirectory
from distill.stages import kept
from distill.stages.attention import AttentionStage
from distill.stages.fit import go_on
from distill.stages.logits import LogitsStage
from distill.sweep.state import State, mark, state
from distill.whole import vouch, voucher

from .conftest import SMALL, Compose
from .test_bad_input import typed
from .test_stages import Run

#: The tests below read one run, so they belong into one process.
pytestmark = pytest.mark.xdist_group("resume")


#: Directories that were locked.
held: list[RunDirectory] = []


@pytest.fixture(autouse=True, scope="module")
def seen():
    """A lock goes with its process, which here lives on."""
    lock = RunDirectory.lock

    def noted(self: RunDirectory) -> None:
        held.append(self)
        lock(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "lock", noted)
        yield


def unlock() -> None:
    while held:
        held.pop().release()


class Killed(BaseException):
    """As nothing catches."""


def at(call: int, work: Callable[..., Any], *effects: str) -> Callable[..., Any]:
    """`work`, which is killed at its so-manieth call."""
    calls: list[int] = []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return work(*given, **named)

    return counted


#: Where a run is killed, one after the other: what is called there, and which call it is.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "in stage 1": (AttentionStage, "compute", 2),
    "in stage 2": (LogitsStage, "compute", 3),
    "while the student is written": (checkpoint, "name_companions", 1),
    "once it is there": (pipeline, "render", 1),
}


@pytest.fixture(scope="module")
def wanted(teachers: dict[str, Path], text: Path) -> Callable[[Path, bool], Config]:
    from .conftest import compose

    given = [f"teacher.path={teachers['gpt2']}", f"data.path={text}", "stages.attention.queries=3"]
    return lambda path, resume: compose("recipe=pocket", *SMALL, *given, f"run_dir={path}", f"resume={resume}")


@pytest.fixture(scope="module")
def whole_run(wanted: Callable[[Path, bool], Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil(wanted(tmp_path_factory.mktemp("whole") / "run", False))


def kill(config: Config, moment: str) -> None:
    owner, name, call = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(call, getattr(owner, name)))
        with pytest.raises(Killed):
            PIPELINES[config.goal](config)
    unlock()


def told(path: Path) -> dict[str, Any]:
    """All that does not depend on when a run was made, and where."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    headline = json.loads((path / "measurements" / "headline.json").read_text())
    untimed = {key: value for key, value in headline.items() if "seconds" not in key and "peak" not in key}
    return {"metrics": [line | {"seconds": 0} for line in lines], "headline": untimed}


def same(path: Path, other: Path) -> None:
    for file in ("student/model.safetensors", "kernels/mixture.safetensors"):
        assert (path / file).read_bytes() == (other / file).read_bytes(), file
    assert told(path) == told(other)
    names = {each.name for each in path.iterdir()}
    assert names == {each.name for each in other.iterdir()} and "progress" not in names
    assert not list(path.rglob("*.unfinished"))


def test_a_run_that_is_killed_again_and_again(
    wanted: Callable[[Path, bool], Config], whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = wanted(tmp_path / "run", True)
    for moment in MOMENTS:
        kill(config, moment)
        assert not (tmp_path / "run" / "report").exists()
    assert (tmp_path / "run" / "student").exists()
    with pytest.MonkeyPatch.context() as patch:
        # What is finished is not done again, and took what it took.
        for stage in (AttentionStage, LogitsStage):
            patch.setattr(stage, "compute", at(1, stage.compute))
        distil(config)
        assert "attention 192 tokens in 0 s; logits 192 tokens in 0 s" in capsys.readouterr().out
        same(tmp_path / "run", whole_run)
        unlock()
        assert distil(config) == tmp_path / "run"
    assert capsys.readouterr().out == f"{tmp_path / 'run'} is finished: nothing is left to resume\n"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("logits.safetensors", lambda found: found[:-100]),
        ("logits.safetensors", lambda found: found[:-9] + b"!" + found[-8:]),
        ("logits.safetensors.sha256", lambda found: b"\xff" + found[1:]),
    ],
)
def test_a_stage_whose_record_is_damaged_is_gone_through_again(
    file: str, damage: Callable[[bytes], bytes], wanted: Callable[[Path, bool], Config], whole_run: Path, tmp_path: Path
):
    config = wanted(tmp_path / "run", True)
    kill(config, "while the student is written")
    record = tmp_path / "run" / "progress" / file
    record.write_bytes(damage(record.read_bytes()))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "logits", "st')
    with pytest.warns(match="logits.safetensors is not what was written"):
        same(distil(config), whole_run)


def test_chance_after_a_stage_that_had_only_to_be_recorded(wanted: Callable[[Path, bool], Config], tmp_path: Path):
    """From the checkpoint of its last step nothing would be left to do that takes up chance again."""

    def adapted(name: str) -> Config:
        config = wanted(tmp_path / name, True)
        stages = config.stages
        logits = replace(stages.logits, train="lora", max_steps=4)
        return replace(config, stages=replace(stages, attention=replace(stages.attention, max_steps=4), logits=logits))

    whole = distil(adapted("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "keep", at(1, Progress.keep))
        with pytest.raises(Killed):
            distil(adapted("killed"))
    unlock()
    same(distil(adapted("killed")), whole)


def test_a_run_is_resumed_as_it_began(wanted: Callable[[Path, bool], Config], tmp_path: Path):
    config = wanted(tmp_path / "run", True)
    kill(config, "in stage 2")
    other = replace(config, stages=replace(config.stages, logits=replace(config.stages.logits, max_steps=4)))
    with pytest.raises(UserError, match=r"^stages\.logits\.max_steps=4: the run in run_dir=\S+ began with 3; resume"):
        distil(other)
    # Nor does it matter how what is computed is made, or kept.
    assert RunDirectory(replace(config, compile=True, checkpoint_minutes=7.0)).begun
    with pytest.raises(UserError, match=r"already holds a run; .*go on with resume=true"):
        distil(replace(config, resume=False))
    (tmp_path / "run" / "config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"^run_dir=\S+ cannot be resumed: \S+/config\.yaml: "):
        distil(config)


def test_a_directory_is_one_runs_at_a_time(wanted: Callable[[Path, bool], Config], tmp_path: Path):
    config = wanted(tmp_path / "run", True)
    first = RunDirectory(config)
    first.create()
    with pytest.raises(UserError, match="another run is writing to it"):
        RunDirectory(config).create()
    first.release()
    # Who only looks whether it is taken is in nobody's way.
    looks = threading.Timer(0.1, (looker := (first.path / "lock").open()).close)
    fcntl.flock(looker, fcntl.LOCK_SH)
    looks.start()
    # Why an earlier attempt ended does not outlive it.
    mark(first.path, State("failed", "of before"))
    RunDirectory(config).create()
    assert state(first.path) == State("running")


def test_a_teacher_that_was_being_trained(small: Compose, text: Path, tmp_path: Path):
    def wanted(name: str) -> Config:
        made = ["goal=teacher", "stages.pretrain.max_steps=4", f"run_dir={tmp_path / name}", "resume=true"]
        return small(*made)

    expected = PIPELINES["teacher"](wanted("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.pretrain.card", at(1, lambda: None))
        with pytest.raises(Killed):
            PIPELINES["teacher"](wanted("killed"))
    unlock()
    assert not (tmp_path / "killed" / "teacher").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.pretrain.digests", lambda corpus: {"prose": "another"})
        with pytest.raises(UserError, match="the text of prose is not what it was"):
            PIPELINES["teacher"](wanted("killed"))
    unlock()
    found = PIPELINES["teacher"](wanted("killed"))
    weights = "teacher/model.safetensors"
    assert (found / weights).read_bytes() == (expected / weights).read_bytes()


def test_chance_goes_on_where_it_was(tmp_path: Path):
    stage = torch.nn.Linear(2, 2)

    def drawn() -> list[Any]:
        return [torch.rand(3).tolist(), numpy.random.rand(3).tolist(), numpy.random.randn(3).tolist(), random.random()]

    numpy.random.randn()
    progress = Progress(tmp_path / "progress", True)
    assert progress.restore("stage", stage) is None
    progress.keep("stage", stage, {"tokens": 3})
    written, expected = load_file(progress.file("stage")), drawn()
    torch.nn.init.zeros_(stage.weight)
    assert progress.restore("stage", stage) == {"tokens": 3} and drawn() == expected
    assert torch.equal(stage.weight, written["weight.weight"])
    assert Progress(tmp_path / "progress", False).restore("stage", stage) is None


def test_resume_wants_a_directory(tmp_path: Path):
    done = typed("resume=true", cwd=tmp_path)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr == "distill: resume=true needs run_dir: give the directory of the run that is to go on\n"


#: What runs of every kind add to a configuration.
KINDS: dict[str, list[str]] = {
    "a sample of queries": ["stages.attention.queries=3"],
    "several to a step": ["trainer.accumulate_grad_batches=2"],
    "draws made anew": ["mixer=favor-redrawn", "mixer.features=12", "mixer.redraw_every=2"],
}
STEPS, LAST = 9, 7
NINE = [f"stages.{stage}.max_steps={STEPS}" for stage in ("attention", "logits")]


def fitted(config: Config, stage: str, killed: bool = False) -> tuple[dict[str, torch.Tensor], list[Any], Path]:
    """The weights that a stage leaves, what was logged, and its checkpoints; killed in its seventh step."""
    run = Run(config, config.teacher.path)
    made = {"attention": run.attention, "logits": run.logits}[stage]()
    if killed:
        each = config.trainer["accumulate_grad_batches"]
        made.steps.compute = at((LAST - 1) * each + 1, made.steps.compute)
        with pytest.raises(Killed):
            run.fit(made, stage)
    else:
        run.fit(made, stage)
    run.directory.release()
    weights = {name: each.clone() for name, each in made.state_dict().items()}
    return weights, [line | {"seconds": 0} for line in run.metrics()], run.directory.checkpoints


@pytest.mark.parametrize(
    ("stage", "kind", "damaged"),
    [
        ("attention", "a sample of queries", True),
        ("attention", "several to a step", False),
        ("logits", "draws made anew", False),
    ],
)
def test_a_stage_goes_on_from_its_last_good_checkpoint(
    stage: str, kind: str, damaged: bool, small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Which is that of step 6, or of step 4 where that one is not what was written."""

    def wanted(name: str) -> Config:
        return small(*NINE, *KINDS[kind], f"run_dir={tmp_path / name}", "resume=true")

    expected, lines, _ = fitted(wanted("whole"), stage)
    _, _, checkpoints = fitted(wanted("killed"), stage, killed=True)
    newest = checkpoints / f"{stage}-step=6.ckpt"
    assert {each.name for each in checkpoints.glob("*.ckpt")} == {newest.name, f"{stage}-step=4.ckpt"}
    if damaged:
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    counted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        owner = {"attention": AttentionStage, "logits": LogitsStage}[stage]
        compute = owner.compute
        patch.setattr(owner, "compute", lambda *given: (counted.append(1), compute(*given))[1])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found, again, _ = fitted(wanted("killed"), stage)
    shown, each = capsys.readouterr(), 2 if kind == "several to a step" else 1
    assert f"stage {stage} goes on after step {4 if damaged else 6} of {STEPS}\n" in shown.out
    assert f"| {STEPS * each}/{STEPS * each} [" in shown.out + shown.err
    said = [str(each.message) for each in told if "is not what was written" in str(each.message)]
    assert [str(newest) in each for each in said] == [True] * damaged
    assert len(counted) == (STEPS - (4 if damaged else 6)) * each
    assert found.keys() == expected.keys() and all(torch.equal(found[name], each) for name, each in expected.items())
    assert again == lines


def test_what_was_kept_before_stays_until_there_is_more(tmp_path: Path, small: Compose):
    run = RunDirectory(small(f"run_dir={tmp_path}"))
    run.checkpoints.mkdir()
    paths = [run.checkpoints / f"logits-step={step}.ckpt" for step in (4, 6, 8)]
    for path in paths:
        path.write_text(path.name)
        vouch(path, path)
    paths[-1].write_text("damaged")
    with pytest.warns(match="step=8.ckpt is not what was written"):
        assert go_on("logits", run, 9) == (paths[1], 6)
    assert [path.exists() for path in paths] == [True, True, False] and not voucher(paths[-1]).exists()


@pytest.mark.parametrize(("last", "by"), [(5, signal.SIGTERM), (5, signal.SIGINT), (STEPS, signal.SIGTERM)])
def test_a_run_that_is_asked_to_end_keeps_what_there_is(
    last: int, by: signal.Signals, small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Whenever that is: after the step that it is in, which no checkpoint would be of otherwise."""

    def wanted(name: str) -> Config:
        return small(*NINE, *KINDS["a sample of queries"], f"run_dir={tmp_path / name}", "resume=true")

    expected, lines, _ = fitted(wanted("whole"), "attention")
    config = wanted("asked")
    run = Run(config, config.teacher.path)
    stage, calls, before = run.attention(), [], signal.getsignal(signal.SIGINT)
    compute = stage.steps.compute

    def asked(inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), by)
        return compute(inputs)

    stage.steps.compute = asked
    with pytest.raises(SystemExit) as left:
        run.fit(stage, "attention")
    run.directory.release()
    assert left.value.code == 128 + by and len(calls) == last and signal.getsignal(signal.SIGINT) == before
    cure = f"run_dir={run.directory.path} resume=true goes on with it"
    said = f"distill: stage attention ended after step {last}, as {by.name} asked; {cure}"
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert (run.directory.checkpoints / f"attention-step={last}.ckpt").exists() == (last < STEPS)
    assert run.directory.progress.file("attention").exists() == (last == STEPS)
    found, again, _ = fitted(config, "attention")
    assert all(torch.equal(found[name], each) for name, each in expected.items()) and again == lines


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """But one that comes at once, and again, however often a terminal sends it."""
    now = 9.0
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: now))
    keeper = kept.Keep("attention", tmp_path, 40, 1)
    for now in (9.0, 9.0 + AT_ONCE / 2, 9.0 + 0.9 * AT_ONCE):  # noqa: B007
        keeper.note(signal.SIGINT, None)
    assert keeper.asked == signal.SIGINT
    now = 9.0 + 1.1 * AT_ONCE
    with pytest.raises(KeyboardInterrupt):
        keeper.note(signal.SIGINT, None)


def test_a_stage_keeps_what_there_is_every_so_many_minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Counted from the last time, and every quarter in any case."""
    now, steps = 0.0, list[int]()
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: now))
    keeper = kept.Keep("attention", tmp_path, 40, 3 / 60)
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, save_checkpoint=lambda path: steps.append(step))
    before = signal.getsignal(signal.SIGTERM)
    keeper.on_train_start(trainer, None)
    keeper.stop()
    signal.signal(signal.SIGTERM, before)
    for index in range(40):
        now = index / 2
        step = trainer.global_step = (index + 1) // 2
        keeper.on_train_batch_end(trainer, None, None, None, index)
    # In steps of a second, of which the first ends after half of one.
    assert steps == [4, 7, 10, 13, 16, 19, 20]


def test_a_text_that_has_changed_is_not_gone_on_with(
    wanted: Callable[[Path, bool], Config], text: Path, tmp_path: Path
):
    copy = tmp_path / text.name
    copy.write_text(text.read_text())
    config = wanted(tmp_path / "run", True)
    config = replace(config, data=replace(config.data, path=str(copy)))
    kill(config, "in stage 2")
    copy.write_text(text.read_text().replace("e", "a", 1))
    with pytest.raises(UserError, match=r"^data: the text of prose is not what it was .*; bring it back"):
        distil(config)
