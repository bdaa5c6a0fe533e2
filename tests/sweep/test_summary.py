"""What `python -m distill.sweep` tells of a folder: every job's state, the front, the best, and how to go on."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from distill.sweep import launch
from distill.sweep.__main__ import main
from distill.sweep.jobs import Job, Sweep, begin, check_begun, read
from distill.sweep.outcome import check_finished
from distill.sweep.result import METRICS
from distill.sweep.state import State, mark, state, unmark
from tests.report.conftest import dump, headline

DOMAINS = ("code", "prose")


def sweep(folder: Path, n: int) -> Sweep:
    jobs = [Job(i, folder / str(i), ["recipe=pocket", f"mixer.features={8 << i}"]) for i in range(n)]
    made = Sweep(folder, "python -m distill -m again resume=true", jobs)
    begin(made)
    return made


def finish(job: Job, ratio: float = 1.1, state: int | None = 1024, **changes: Any) -> None:
    (job.directory / "report").mkdir(parents=True)
    (job.directory / "student").mkdir()
    (job.directory / "measurements").mkdir()
    (job.directory / "config.yaml").touch()
    both = {"ratio": {"code": ratio, "prose": ratio}, "state_bytes": state, "student_cache_bytes_per_token": 0}
    dump(job.directory / "measurements/headline.json", headline(DOMAINS) | {"task": "causal_lm"} | both | changes)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_every_state_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = sweep(tmp_path / "all", 6)
    finish(made.jobs[0])
    mark(made.jobs[1].directory, State("failed", "mixer.order=0: 1 or more"))
    mark(made.jobs[2].directory, State("killed", "SIGKILL"))
    for job in made.jobs[3:5]:
        job.directory.mkdir()
        (job.directory / "config.yaml").touch()
    with (made.jobs[3].directory / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main([str(made.folder)]) == 0
        with pytest.raises(
            UserError, match=r"^5 of the sweep's 6 jobs are not finished: 1 failed: mixer.order=0.*; 2 "
        ):
            check_finished(made)
    states = ["finished", "failed", "killed", "running", "unfinished", "not begun"]
    assert [each["state"] for each in summary(made.folder)["jobs"]] == states
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[:3] == ["1", "mixer.features=16", "failed"]
    assert "job 1 failed: mixer.order=0: 1 or more" in said and "job 2 killed: SIGKILL" in said
    assert "6 jobs: 1 finished, 1 failed, 1 killed, 1 running, 1 unfinished, 1 not begun" in said
    assert f"go on: {made.command}" in said and f"serve it: python -m distill.serve {made.folder}/0/student" in said
    assert "killed: SIGKILL" in (made.folder / "summary.md").read_text()
    # Once its holder is gone.
    assert state(made.jobs[3].directory) == State("unfinished")


def test_a_mark_goes_when_the_job_goes_on(tmp_path: Path):
    mark(tmp_path / "job", State("failed", "why"))
    assert state(tmp_path / "job") == State("failed", "why")
    unmark(tmp_path / "job")
    assert state(tmp_path / "job") == State("not begun")
    finish(Job(0, tmp_path / "job", []))
    mark(tmp_path / "job", State("failed", "a rerun that was refused"))
    assert state(tmp_path / "job") == State("finished")


def test_the_front_and_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = sweep(tmp_path / "all", 5)
    finish(made.jobs[0], 1.3, 1024)
    finish(made.jobs[1], 1.2, 4096, kl={"code": 0.01, "prose": 0.4})
    finish(made.jobs[2], 1.25, 8192)
    finish(made.jobs[3], 1.1, 2048, student_cache_bytes_per_token=100)
    finish(made.jobs[4], 1.4, None)
    assert main([str(made.folder)]) == 0
    found = summary(made.folder)
    assert (found["front"], found["best"]) == ([0, 1, 3], 3)
    # A cache is kept, too: 2,048 bytes and 100 for each token of the context.
    assert found["jobs"][3]["state_bytes"] == 2048 + 100 * headline(DOMAINS)["context"]
    drawn = (made.folder / "summary.svg").read_text()
    assert drawn.startswith("<svg") and "1.10×" in drawn
    capsys.readouterr()
    assert main([str(made.folder), "--by", "kl", "--on", "code"]) == 0
    assert "best by kl on code: job 1, mixer.features=16: 0.01" in capsys.readouterr().out
    assert main([str(made.folder), "--on", "music"]) == 2
    assert capsys.readouterr().err == (
        "distill: --by ratio --on music: no finished job has it; its texts are code, prose\n"
    )


def test_metrics_are_read_where_a_run_leaves_them():
    found = headline(DOMAINS)
    known = {name for name, metric in METRICS.items() if any(metric.read(found).values())}
    assert known >= {"ratio", "kl", "perplexity", "agreement", "state", "seconds"}


def test_a_folder_without_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"distill: {tmp_path}: no sweep, it has no sweep.json; give the hydra.sweep.dir of one\n"
    )
    (tmp_path / "sweep.json").write_text("{")
    assert main([str(tmp_path)]) == 2 and "is damaged" in capsys.readouterr().err


def test_a_sweep_is_resumed_as_it_began_and_may_grow(tmp_path: Path):
    made = sweep(tmp_path / "all", 2)
    with pytest.raises(UserError, match=r"already holds a sweep; .* resume=true"):
        check_begun(made.folder, False)
    check_begun(made.folder, True)
    grown = Sweep(made.folder, made.command, [*made.jobs, Job(2, made.folder / "2", ["seed=1"])])
    begin(grown)
    assert read(made.folder) == grown
    with pytest.raises(UserError, match=r"holds a sweep of other jobs; .* python -m distill -m again"):
        begin(made)
    # What never began may become another.
    mended = [Job(1, made.folder / "1", ["seed=5"]) if job.number == 1 else job for job in grown.jobs]
    begin(Sweep(made.folder, made.command, mended))
    (made.folder / "1").mkdir()
    (made.folder / "1" / "config.yaml").touch()
    with pytest.raises(UserError, match=f"holds a sweep of other jobs; .*, or delete {made.folder / '1'}, and"):
        begin(grown)
    (made.folder / "1" / "config.yaml").unlink()
    begin(grown)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-9, "killed: SIGKILL"),
        (-15, "killed: SIGTERM"),
        (143, "killed: SIGTERM"),
        (3, r"failed: exit code 3, see x/log.txt"),
    ],
)
def test_how_a_process_ended(code: int, told: str):
    assert str(launch.ended(code, Job(0, Path("x"), []))) == told


def test_a_job_that_left_a_word_of_its_own_is_not_told_of_again(tmp_path: Path):
    job = Job(0, tmp_path, [])
    launch.leave_word(job, 1)
    assert state(tmp_path).reason.startswith("exit code 1")
    mark(tmp_path, State("failed", "its own"))
    launch.leave_word(job, 2)
    assert state(tmp_path) == State("failed", "its own")
    launch.leave_word(job, -9)
    assert state(tmp_path) == State("killed", "SIGKILL")
    unmark(tmp_path)
    with (tmp_path / "lock").open("w") as file:
        # By a run of another command.
        fcntl.flock(file, fcntl.LOCK_EX)
        launch.leave_word(job, 2)
        assert state(tmp_path) == State("running")
