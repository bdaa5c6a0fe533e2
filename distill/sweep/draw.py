"""Random search: values drawn from what the command line allows, the same ones by every rerun."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from hydra.core.override_parser.types import Override

from ..errors import UserError

#: How many draws may be made for one that there was not yet.
PATIENCE = 100


def drawn(overrides: Sequence[Override], n: int, seed: int) -> list[list[str]]:
    """The overrides of up to n jobs that differ; fewer where there are no more.

    Every key has a generator of its own, so that more jobs begin with the same ones, and another key changes no draw of
    the others.
    """
    generators = [Random(f"{seed} {each.get_key_element()}") for each in overrides]
    # As a dictionary, which keeps the order.
    jobs: dict[tuple[str, ...], None] = {}
    for _ in range(PATIENCE * n):
        jobs[tuple(map(override, overrides, generators))] = None
        if len(jobs) == n:
            break
    return [list(job) for job in jobs]


def override(given: Override, draw: Random) -> str:
    """With one value of a list or a range, or with a number of an interval: a whole one where it is written
    int(interval(…)), and with even logarithms where tag(log, interval(…))."""
    key = given.get_key_element()
    if given.is_discrete_sweep():
        return f"{key}={draw.choice(list(given.sweep_string_iterator()))}"
    if given.is_interval_sweep():
        return f"{key}={number(given.value(), key, draw)}"
    return str(given.input_line)


def number(interval: Any, key: str, draw: Random) -> float | int:
    """UserError where it is empty, or has no logarithm."""
    low, high, even = interval.start, interval.end, "log" not in interval.tags
    if not low < high or not (even or low > 0):
        raise UserError(f"{key}: interval({low}, {high}) has to grow, and with tag(log, …) to begin above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    # Of whole numbers the last one is as likely as any other.
    top = high + 1 if whole else high
    drawn = draw.uniform(low, top) if even else math.exp(draw.uniform(math.log(low), math.log(top)))
    # Four digits can be read; rounding must not lead out.
    return min(max(math.floor(drawn) if whole else float(f"{drawn:.4g}"), low), high)
