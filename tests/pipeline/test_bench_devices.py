"""The benchmark of several devices: which runs stand beside one another, and what is told of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distill.bench.devices import STAGES, Job, jobs, rows, section, speed

ASKED = Job(
    devices=2, batch=8, graphs=True, strategy="ddp", mixer="exponential", layers=12, width=768, heads=12, words=50257,
    context=1024, steps=9, precision="bf16-mixed", accelerator="gpu",
)  # fmt: skip


def logged(per_second: float, loss: float = 1.0) -> list[dict[str, Any]]:
    """The first third is slow, as long as kernels are chosen."""
    seconds = np.cumsum([50.0, 50, 50, *[1] * 6])
    tokens = np.cumsum([1.0, 1, 1, *[per_second] * 6])
    return [
        {"stage": stage, "step": i + 1, "seconds": seconds[i], "tokens": tokens[i], "loss": loss / (i + 1)}
        for stage in STAGES
        for i in range(9)
    ]


def test_several_have_as_many_rows_each_or_share_those_of_one():
    found = [(job.devices, job.batch, job.graphs) for job in jobs(ASKED)]
    assert found == [(1, 8, True), (1, 8, False), (2, 16, True), (2, 8, True)]
    assert [job.graphs for job in jobs(replace(ASKED, strategy="fsdp"))] == [True, False, False, False]
    assert [job.devices for job in jobs(replace(ASKED, graphs=False))] == [1, 2, 2]


def test_speed_is_that_after_kernels_were_chosen_and_between_checkpoints():
    given = logged(100.0)
    for line in given[-2:]:
        line["seconds"] += 30
    assert speed(given, "logits") == pytest.approx(100.0)


def test_goals_are_over_one_device_at_its_fastest_and_beside_its_losses():
    given = zip(jobs(ASKED), [logged(100.0), logged(80.0), logged(190.0), logged(90.0, 1.01)], strict=True)
    made = rows(list(given), "exponential", "typed", "2 × GPU", "abc")
    goals = {(row.case.split(" | ")[2], row.metric): (row.value, row.goal) for row in made if row.goal}
    one = "1 device, batch 8"
    for stage in STAGES:
        faster = f"{stage}, 2 devices by ddp, batch 16 as CUDA graphs over {one} as CUDA graphs, 2 × GPU"
        assert goals.pop((faster, "speedup")) == (pytest.approx(1.9), ">= 1.8")
        apart = f"{stage}, 2 devices by ddp, batch 8 as CUDA graphs beside {one}, 2 × GPU"
        assert goals.pop((apart, "loss_gap")) == (pytest.approx(0.01), "<= 0.001")
    assert not goals
    alike = rows([(job, logged(100.0, 0.0)) for job in jobs(ASKED)], "exponential", "typed", "2 × GPU", "abc")
    assert {row.value for row in alike if row.metric == "loss_gap"} == {0.0}
    dealt = [(replace(job, strategy="fsdp"), lines) for job, lines in ((job, logged(100.0)) for job in jobs(ASKED))]
    assert {row.metric for row in rows(dealt, "exponential", "typed", "2 × GPU", "abc") if row.goal} == {"loss_gap"}
    shown = section("name", made)
    assert [figure.alt.split(" by step")[0] for figure in shown.figures[0]] == [f"Loss of {name}" for name in STAGES]
    assert ["logits, 1 device, batch 8", "tokens_per_second", "80.0"] in shown.tables[1].rows
    # In the picture, too, and not only in what is said of it.
    assert all(figure.svg.count(f">{one}<") for figure in shown.figures[0])
