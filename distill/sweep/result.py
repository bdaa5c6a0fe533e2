"""What a job measured, as numbers that jobs are held against each other by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..errors import UserError
from ..report.run import ArtefactError, Run
from .jobs import Job, Sweep, differing
from .state import State, state

#: Numbers by domain; of what is no text's, under one name for all.
Values = dict[str, float | None]
ALL = "all"


@dataclass(frozen=True)
class Metric:
    """read: from measurements/headline.json. better: min or max, the one that chooses the best."""

    read: Callable[[dict[str, Any]], Values]
    better: Callable[..., Any] = min


def by_domain(key: str) -> Callable[[dict[str, Any]], Values]:
    return lambda headline: headline.get(key) or {}


def score(name: str) -> Metric:
    """Of encoders, whose answers are right or wrong."""

    def read(headline: dict[str, Any]) -> Values:
        return {domain: each.get(name, {}).get("student") for domain, each in (headline.get("scores") or {}).items()}

    return Metric(read, max)


def memory(headline: dict[str, Any]) -> float | None:
    """Bytes that decoding one sequence keeps at the context: the state, and the cache of layers kept exact."""
    if headline["state_bytes"] is None:
        return None
    return headline["state_bytes"] + headline["context"] * (headline.get("student_cache_bytes_per_token") or 0) or None


#: What the best may be chosen by.
METRICS = {
    "ratio": Metric(by_domain("ratio")),
    "kl": Metric(by_domain("kl")),
    "perplexity": Metric(by_domain("student_ppl")),
    "agreement": Metric(by_domain("agreement"), max),
    **{name: score(name) for name in ("accuracy", "f1", "mcc", "cosine")},
    "state": Metric(lambda headline: {ALL: memory(headline)}),
    "seconds": Metric(lambda headline: {ALL: sum(headline["seconds"].values())}),
}


@dataclass(frozen=True)
class Result:
    """told: its overrides that not all jobs have. headline: None where it is not finished, or measured nothing."""

    job: Job
    told: str
    state: State
    headline: dict[str, Any] | None

    def values(self, metric: str) -> Values:
        return METRICS[metric].read(self.headline) if self.headline else {}

    def value(self, metric: str, domain: str | None = None) -> float | None:
        """That of a domain, or the mean over all, of ratios the geometric one; None where one is missing."""
        found = self.values(metric)
        values = list(found.values()) if domain is None or ALL in found else [found.get(domain)]
        known = [each for each in values if each is not None]
        if not known or len(known) < len(values):
            return None
        return math.exp(fmean(map(math.log, known))) if metric == "ratio" else fmean(known)


def results(sweep: Sweep) -> list[Result]:
    return [
        Result(job, told, found := state(job.directory), headline(job) if found.name == "finished" else None)
        for job, told in zip(sweep.jobs, differing(sweep.jobs), strict=True)
    ]


def headline(job: Job) -> dict[str, Any] | None:
    try:
        return Run(job.directory).json("measurements/headline.json")
    except (ArtefactError, UserError):
        # A teacher that was trained has none.
        return None


def best(found: list[Result], by: str, domain: str | None = None) -> Result | None:
    """The first of the best; None where no job is finished. UserError where none of those that are has the number."""
    scored = [(value, each) for each in found if (value := each.value(by, domain)) is not None]
    if not scored and any(each.headline for each in found):
        known = dict.fromkeys(name for each in found for name in each.values("ratio"))
        on = f" --on {domain}" if domain else ""
        raise UserError(f"--by {by}{on}: no finished job has it; its texts are {', '.join(known)}")
    chosen: tuple[float, Result] | None = METRICS[by].better(scored, key=lambda each: each[0], default=None)
    return chosen[1] if chosen else None


def front(found: list[Result]) -> list[Result]:
    """Those that no other beats in ratio without a larger state, from the smallest state upwards."""
    placed = [(size, ratio, each) for each in found if (size := each.value("state")) and (ratio := each.value("ratio"))]
    kept: list[tuple[float, float, Result]] = []
    for size, ratio, each in sorted(placed, key=lambda place: place[:2]):
        if not kept or ratio < kept[-1][1]:
            kept.append((size, ratio, each))
    return [each for _, _, each in kept]
