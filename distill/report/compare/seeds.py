"""Runs that differ in their seed alone, joined into rows."""

from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean, stdev

from ...errors import UserError
from .case import Case
from .command import over_seeds
from .measured import Measured
from .rows import METRICS, Row


def joined_over_seeds(runs: list[Measured]) -> list[Row]:
    """UserError: two runs of a case have one seed, or differ in something else."""
    cases: dict[str, list[tuple[Case, Measured]]] = {}
    for run in runs:
        for case in run.values:
            cases.setdefault(str(case), []).append((case, run))
    rows = []
    for name, found in cases.items():
        found.sort(key=lambda entry: entry[1].seed)
        for (_, first), (_, second) in pairwise(found):
            _check(name, first, second)
        for metric in dict.fromkeys(metric for case, run in found for metric in run.values[case]):
            told = [(run, run.values[case][metric]) for case, run in found if metric in run.values[case]]
            rows.append(_row(name, metric, told))
    return rows


def _check(name: str, first: Measured, second: Measured) -> None:
    both = f"{first.path} and {second.path} are both '{name}'"
    for key in first.settings.keys() | second.settings.keys():
        values = first.settings.get(key), second.settings.get(key)
        if values[0] != values[1]:
            raise UserError(
                f"{both} but differ in {key} ({values[0]}, {values[1]}): compare them in tables of their own"
            )
    if first.seed == second.seed:
        raise UserError(f"{both} with seed {first.seed}: leave one of them out")


def _row(case: str, metric: str, told: list[tuple[Measured, float | None]]) -> Row:
    """A seed without a finite value leaves the row without one: its mean would hide that."""
    runs = [run for run, _ in told]
    values = [value for _, value in told if value is not None]
    whole = len(values) == len(told)
    return Row(
        case=case,
        metric=metric,
        value=_mean(values) if whole else None,
        spread=stdev(values) if whole and len(values) > 1 else None,
        seeds=[run.seed for run in runs],
        unit=METRICS.get(metric, "tokens" if metric.endswith("_tokens") else None),
        goal=None,
        command=over_seeds({run.seed: run.command for run in runs if run.command}),
        hardware=_listed(run.hardware for run in runs),
        commit=_listed(run.commit for run in runs),
    )


def _mean(values: list[float]) -> float:
    """Of equal numbers, such as counts, that very number."""
    return values[0] if len(set(values)) == 1 else fmean(values)


def _listed(names: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(name for name in names if name)) or None
