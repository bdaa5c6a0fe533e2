"""A sweep in which one job fails and one is killed, and what is left of it afterwards."""

import json
import multiprocessing.process
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.__main__ import main
from distill.config import Config
from distill.pipeline import PIPELINES
from distill.sweep import processes
from distill.sweep.__main__ import main as told
from distill.sweep.state import State, state

from . import warm
from .conftest import SMALL

JOBS, REFUSED, KILLED = 6, 4, 2


@pytest.fixture
def started_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT")}
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=warm.Popen, **same))
    # It looks after processes that other threads wait for.
    monkeypatch.setattr(multiprocessing.process, "_cleanup", lambda: None)


def kill_once_it_trains(sweep: Path) -> None:
    """The job KILLED, by the signal that nothing catches."""
    until = time.monotonic() + 100
    while not (sweep / f"{KILLED}/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(next(each.pid for each in warm.Popen.running if f"hydra.job.num={KILLED}" in each.args), signal.SIGKILL)


def test_one_job_fails_and_one_is_killed_and_a_rerun_completes_the_rest(
    started_warm: None,
    teachers: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    paths = [tmp_path / f"teacher-{number}" for number in range(JOBS)]
    for path in paths:
        path.symlink_to(teachers["gpt2"])
    paths[REFUSED].unlink()
    sweep = tmp_path / "sweep"
    swept = f"teacher.path={','.join(map(str, paths))}"
    typed = [
        *SMALL,
        "report.sections=[headline]",
        "stages.logits.max_steps=0",
        "data.validation_blocks=2",
        f"data.path={text}",
        swept,
    ]
    typed += [f"hydra.sweep.dir={sweep}", "hydra.launcher.at_a_time=3"]

    def run(*more: str) -> int:
        return type_in("-m", *typed, *more)

    def type_in(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["distill", *words])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    def summary() -> list[str]:
        assert told([str(sweep)]) == 0
        return capfd.readouterr().out.splitlines()

    def counts(lines: list[str]) -> str:
        return next(line for line in lines if line.startswith(f"{JOBS} jobs: "))

    killer = threading.Thread(target=kill_once_it_trains, args=[sweep])
    killer.start()
    assert run() == 2
    killer.join()
    said = capfd.readouterr().err.splitlines()[-1]
    assert (
        f"distill: 2 of the sweep's {JOBS} jobs are not finished: {KILLED} killed: SIGKILL; {REFUSED} failed: " in said
    )
    assert f"teacher.path={paths[REFUSED]} does not exist" in said

    lines = summary()
    assert counts(lines) == f"{JOBS} jobs: {JOBS - 2} finished, 1 killed, 1 failed"
    assert f"job {KILLED} killed: SIGKILL" in lines
    assert any(line.startswith(f"job {REFUSED} failed: teacher.path={paths[REFUSED]} does not exist") for line in lines)
    assert run() == 2 and "already holds a sweep; choose another, or go on with resume=true" in capfd.readouterr().err

    paths[REFUSED].symlink_to(teachers["gpt2"])
    first = {number: (sweep / f"{number}/log.txt").read_text() for number in range(JOBS)}
    warm.Popen.running.clear()
    again = next(line.removeprefix("go on: python -m distill ") for line in lines if line.startswith("go on: "))
    assert type_in(*shlex.split(again)) == 0
    assert len(warm.Popen.running) == 2
    changed = [number for number in range(JOBS) if (sweep / f"{number}/log.txt").read_text() != first[number]]
    assert changed == [KILLED, REFUSED] and not list(sweep.glob("*/failed.json"))

    capfd.readouterr()
    lines = summary()
    assert counts(lines) == f"{JOBS} jobs: {JOBS} finished" and not any("go on: " in line for line in lines)
    # All had the same weights to learn from, and so come to the same, however often they were begun.
    measured = json.loads((sweep / "summary.json").read_text())["jobs"]
    assert len({each["ratio"]["prose"] for each in measured}) == 1
    assert (sweep / "summary.svg").read_text().startswith("<svg")


def test_jobs_of_one_sweep_are_one_group_and_one_that_breaks_ends_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    groups: list[str | None] = []

    def note(config: Config) -> Path:
        assert config.logger is not None and config.logger["offline"]
        groups.append(config.logger["group"])
        raise ZeroDivisionError("a mistake of ours")

    def run(*typed: str) -> None:
        monkeypatch.setattr(sys, "argv", ["distill", *typed, "logger=wandb"])
        with pytest.raises((SystemExit, ZeroDivisionError)):
            main()

    monkeypatch.setitem(PIPELINES, "student", note)
    run(f"run_dir={tmp_path / 'run'}")
    sweep = ["-m", "seed=0,1", "hydra/launcher=basic", f"hydra.sweep.dir={tmp_path / 'rates'}"]
    run(*sweep)
    run(*sweep[:-1], f"hydra.sweep.dir={tmp_path / 'named'}", "logger.group=mine")
    assert groups == [None, "rates", "rates", "mine", "mine"]
    assert state(tmp_path / "rates/1") == State("failed", "ZeroDivisionError: a mistake of ours")
