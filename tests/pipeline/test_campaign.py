"""Runs that are killed at random moments come to what others come to; `-m long` kills as many as the campaign does."""

import shutil
from pathlib import Path

import pytest

from .campaign import KINDS, Killed, campaign, half_written, rows
from .conftest import SMALL


def came_through(found: list[Killed], times: int) -> None:
    assert [(each.finished, each.same, each.half_written) for each in found] == [(True, True, [])] * times


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_a_run_that_is_killed_comes_to_the_same(alone: Path, teachers: dict[str, Path], text: Path):
    """And what tells of damage does."""
    found = campaign([*SMALL, f"teacher.path={teachers['gpt2']}", f"data.path={text}"], 1, alone)
    came_through(found, 1)
    metrics = {row.metric: row.value for row in rows("short", found, "typed")}
    assert metrics["finished"] == metrics["same_weights"] == 1 and metrics["half_written"] == 0

    whole, damaged = alone / "whole", alone / "damaged"
    shutil.copytree(whole, damaged)
    assert half_written(damaged, whole) == []
    for name in ("student/model.safetensors", "config.yaml", "measurements/headline.json", "report/report.html"):
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2])
        assert [each.split(":")[0] for each in half_written(damaged, whole)] == [name]
        (damaged / name).write_bytes(content)
    (damaged / "student" / "config.json").rename(damaged / "student" / "config.json.unfinished")
    assert half_written(damaged, whole) == ["student/config.json is missing"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_runs_that_are_killed(kind: str, tmp_path: Path):
    arguments, times, in_one = KINDS[kind]
    came_through(campaign(arguments, times, tmp_path, in_one=in_one), times)
