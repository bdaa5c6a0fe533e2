"""What one mixer leaves of another's gap to the teacher: "stationary F=128 / hedgehog F=128 <= 0.6"."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from ...errors import UserError
from .case import Case, nearest, parse
from .goals import BOUND
from .rows import GAP, Row, in_order


@dataclass(frozen=True)
class Pair:
    """Two mixers by their words, and the bound that their quotient should keep."""

    mixer: str
    other: str
    goal: str | None = None


def with_gaps(rows: list[Row], asked: list[str]) -> list[Row]:
    """The rows, with ln(ratio) / ln(ratio of the other) in each domain for what is asked and what earlier tables asked.

    0: as good as the teacher, 1: no better than the other. These rows are made anew, so that none outlives what it was
    made of. UserError: something asked for is not A / B, or no domain has a ratio of both.
    """
    pairs = {(row.case, row.metric): row.goal for row in rows if row.metric.startswith(GAP)}
    measured = {row.case: row for row in rows if row.metric == "ratio"}
    for pair in map(_parsed, asked):
        found = [case for case in measured if parse(case).mixer == pair.mixer and _beside(case, pair.other) in measured]
        if not found:
            raise UserError(f"--gap '{pair.mixer} / {pair.other}': {_missing(pair, measured)}")
        metric = f"{GAP}{pair.other}"
        pairs |= {(case, metric): pair.goal or pairs.get((case, metric)) for case in found}
    gaps = [
        _gap(measured[case], measured[other], metric, goal)
        for (case, metric), goal in pairs.items()
        if case in measured and (other := _beside(case, metric.removeprefix(GAP))) in measured
    ]
    return in_order([row for row in rows if not row.metric.startswith(GAP)] + gaps)


def _gap(one: Row, other: Row, metric: str, goal: str | None) -> Row:
    """No value where the other has no gap.

    The spread is carried over to first order, d ln r = dr / r, as if the two mixers' seeds were not the same.
    """
    value = spread = None
    if one.value and other.value and other.value > 1:
        gap, whole = math.log(one.value), math.log(other.value)
        value = gap / whole
        if one.spread is not None and other.spread is not None:
            spread = math.hypot(one.spread / one.value, value * other.spread / other.value) / whole
    fewer = min(one.seeds, other.seeds, key=len)
    return replace(one, metric=metric, value=value, spread=spread, seeds=fewer, unit="of its log ratio", goal=goal)


def _missing(pair: Pair, measured: Collection[str]) -> str:
    """Which of the two there is no ratio of, and what may have been meant."""
    known = {parse(case).mixer for case in measured}
    unknown = next((each for each in (pair.mixer, pair.other) if each not in known), None)
    if unknown is None:
        return "no domain has a ratio of both; give runs of one teacher and text"
    return f"there is no ratio of '{unknown}'; {nearest(unknown, known)}"


def _beside(case: str, mixer: str) -> str:
    """The same case of another mixer."""
    return str(Case(mixer, *parse(case)[1:]))


def _parsed(asked: str) -> Pair:
    found = re.fullmatch(rf"(.+?)\s+/\s+(.+?)\s*(?:{BOUND.pattern})?", asked.strip(), re.IGNORECASE)
    if found is None or re.search("[<>]", found[2]):
        raise UserError(f"--gap '{asked}': give 'MIXER / OTHER' or 'MIXER / OTHER <= NUMBER', as OUT.json names them")
    mixer, other, sign, number = found.groups()
    return Pair(mixer, other, f"{sign} {number}" if sign else None)
