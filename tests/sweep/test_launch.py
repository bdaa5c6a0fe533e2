"""What becomes of the jobs of a sweep whose processes end in one way or another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from distill.sweep import launch
from distill.sweep.command import quoted
from distill.sweep.jobs import Job
from distill.sweep.state import State, mark, state

#: Runs jobs that are these scripts, and returns what became of each.
Run = Callable[..., list[State]]


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [Job(i, tmp_path / str(i), [f"seed={i}"]) for i in range(3)]


@pytest.fixture
def run(jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    def started(*scripts: str, at_a_time: int = 1) -> list[State]:
        monkeypatch.setattr(launch, "of_job", lambda job, _: ["sh", "-c", scripts[job.number]])
        launch.launch(jobs, DictConfig({"hydra": {"sweep": {"dir": str(tmp_path)}}}), at_a_time)
        return [state(job.directory) for job in jobs]

    return started


def test_no_end_of_a_job_ends_the_others(run: Run, jobs: list[Job], capsys: pytest.CaptureFixture[str]):
    log = jobs[0].directory / "log.txt"
    found = run("echo out of ideas; exit 3", "kill -9 $$", f"mkdir {jobs[2].directory}/report", at_a_time=2)
    assert found == [State("failed", f"exit code 3, see {log}"), State("killed", "SIGKILL"), State("finished")]
    assert log.read_text() == "out of ideas\n"
    assert f"job 1 in {jobs[1].directory}: seed=1\n" in capsys.readouterr().out


def test_a_rerun_starts_what_is_not_finished_and_tells_of_it_anew(run: Run, jobs: list[Job]):
    (jobs[0].directory / "report").mkdir(parents=True)
    mark(jobs[1].directory, State("failed", "of before"))
    mark(jobs[2].directory, State("killed", "SIGKILL"))
    found = run("exit 1", "exit 4", f"rm -f {jobs[2].directory}/failed.json; touch {jobs[2].directory}/config.yaml")
    assert found[0] == State("finished") and found[1].reason.startswith("exit code 4") and found[2].name == "unfinished"
    assert not (jobs[0].directory / "log.txt").exists()


def test_a_sweep_that_is_asked_to_end_begins_nothing_more(
    run: Run, jobs: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as left:
        run("trap 'exit 143' TERM; kill -TERM $PPID; while :; do sleep 0.02; done", "exit 0", "exit 0")
    assert left.value.code == 143
    assert [state(job.directory) for job in jobs] == [State("killed", "SIGTERM"), *2 * [State("not begun")]]
    assert not jobs[1].directory.exists()
    said = capsys.readouterr()
    where = f"hydra.sweep.dir={tmp_path} resume=true"
    assert said.err == f"distill: the sweep in {tmp_path} ended, as SIGTERM asked; {where} goes on with it\n"
    assert "job 1" not in said.out


@pytest.mark.parametrize("text", ["plain/a_b.c", "it's", r"a\b", r"a\'b", "end\\", "a b=[c]", "'", ""])
def test_what_is_quoted_is_read_as_it_was(text: str):
    (read,) = OverridesParser.create().parse_overrides([f"run_dir={quoted(text)}"])
    assert str(read.value()) == text
