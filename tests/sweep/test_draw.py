"""Random search draws within bounds, and the same again."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from distill.errors import UserError
from distill.plugins.hydra_plugins.distill_sweeps import Grid
from distill.sweep.draw import drawn

TYPED = [
    "rate=tag(log, interval(1e-4, 1e-2))",
    "share=interval(0.25, 0.75)",
    "features=int(interval(8, 11))",
    "mixer=elu,t2r",
    "steps=range(10, 40, 10)",
    "seed=3",
    "~logger",
]


def draws(n: int, seed: int = 0, typed: list[str] = TYPED) -> list[list[str]]:
    return drawn(OverridesParser.create().parse_overrides(typed), n, seed)


def values(jobs: list[list[str]], key: str) -> list[str]:
    return [value for job in jobs for name, _, value in [each.partition("=") for each in job] if name == key]


def test_draws_keep_to_what_was_typed():
    jobs = draws(400)
    rates = [float(each) for each in values(jobs, "rate")]
    assert all(1e-4 <= each <= 1e-2 for each in rates)
    # As many below the geometric mean as above.
    assert 160 < sum(each < 1e-3 for each in rates) < 240
    shares = [float(each) for each in values(jobs, "share")]
    assert all(0.25 <= each <= 0.75 for each in shares) and math.isclose(sum(shares) / 400, 0.5, abs_tol=0.03)
    counts = [values(jobs, "features").count(each) for each in ("8", "9", "10", "11")]
    assert sum(counts) == 400 and min(counts) > 60
    assert set(values(jobs, "mixer")) == {"elu", "t2r"} and set(values(jobs, "steps")) == {"10", "20", "30"}
    assert set(values(jobs, "seed")) == {"3"} and all(job[-1] == "~logger" for job in jobs)


def test_a_rerun_draws_the_same_jobs_and_a_longer_one_begins_with_them():
    assert draws(12) == draws(30)[:12]
    assert draws(12) != draws(12, seed=1)
    assert values(draws(12, typed=TYPED[:3]), "share") == values(draws(12), "share")


def test_no_job_is_drawn_twice():
    jobs = draws(12, typed=["mixer=elu,t2r", "seed=0,1"])
    assert len(jobs) == 4 and len({tuple(job) for job in jobs}) == 4


def test_a_grid_has_each_combination_once():
    parsed = OverridesParser.create().parse_overrides(["features=16,16,8", "seed=0,1"])
    assert Grid().jobs(parsed) == [
        ["features=16", "seed=0"], ["features=16", "seed=1"], ["features=8", "seed=0"], ["features=8", "seed=1"],
    ]  # fmt: skip


@pytest.mark.parametrize("typed", ["rate=tag(log, interval(0, 1))", "rate=interval(1, 1)"])
def test_an_interval_without_numbers_is_refused(typed: str):
    with pytest.raises(UserError, match=r"^rate: interval\("):
        draws(1, typed=[typed])
