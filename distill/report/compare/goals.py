"""Bounds that a value should keep: "hedgehog F=128 | books-6x512 | prose=ratio<=1.19"."""

import operator
import re
from dataclasses import replace

from ...errors import UserError
from ..quantities import number
from .case import nearest
from .rows import GAP, Row

KEEPS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
BOUND = re.compile(r"(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


def with_goals(rows: list[Row], goals: list[str]) -> list[Row]:
    """UserError: a goal is not CASE=METRIC<=NUMBER, or there is no such row."""
    bounds = dict(map(_parsed, goals))
    known = {row.key for row in rows}
    for (case, metric), goal in bounds.items():
        if (case, metric) not in known:
            metrics = [name for each, name in known if each == case]
            near = (
                f"its metrics are {', '.join(sorted(metrics))}"
                if metrics
                else nearest(case, {each for each, _ in known})
            )
            raise UserError(f"--goal '{case}={metric}{goal}': no row has this case and metric; {near}")
    return [replace(row, goal=bounds.get(row.key, row.goal)) for row in rows]


def kept(row: Row) -> bool | None:
    """Whether a row keeps its goal; None where it has no goal that can be read, or is a share of no gap.

    Otherwise no value keeps none: what diverged has missed.
    """
    found = BOUND.fullmatch(row.goal or "")
    if not found or (row.value is None and row.metric.startswith(GAP)):
        return None
    return row.value is not None and KEEPS[found[1]](row.value, float(found[2]))


def told_apart(row: Row) -> str:
    """The value with as many digits as show on which side of its bound it is: 1.0202 where 1.02 is the bound."""
    found = BOUND.fullmatch(row.goal or "")
    if row.value is None or found is None or row.value == float(found[2]):
        return number(row.value)
    bound, above = float(found[2]), row.value > float(found[2])
    short = number(row.value)
    written = (short, *(f"{row.value:,.{decimals}f}" for decimals in range(len(short.partition(".")[2]), 17)))
    parsed = ((text, float(text.replace(",", ""))) for text in written)
    return next((text for text, read in parsed if read != bound and (read > bound) == above), repr(row.value))


def _parsed(goal: str) -> tuple[tuple[str, str], str]:
    found = re.fullmatch(rf"(.+)=\s*(\w+)\s*{BOUND.pattern}", goal.strip(), re.IGNORECASE)
    if found is None:
        raise UserError(f"--goal '{goal}': give 'CASE=METRIC<=NUMBER' (or >=, <, >), with the case as in OUT.json")
    case, metric, sign, number = found.groups()
    return (case.strip(), metric), f"{sign} {number}"
