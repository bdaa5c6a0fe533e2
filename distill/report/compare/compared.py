"""The rows of one teacher, looked up by mixer, domain and metric."""

import math

from .case import feature_dim, has_own_budget, is_ceiling, is_control, parse
from .rows import Row


class Compared:
    """mixers: those with a row for it, the ceiling first, then from the least mean shortfall over domains upwards."""

    def __init__(self, teacher: str, rows: list[Row]):
        self.teacher, self.rows = teacher, rows
        cases = [parse(row.case) for row in rows]
        self._rows = {(case.mixer, case.domain, row.metric): row for case, row in zip(cases, rows, strict=True)}
        measured = [case for case, row in zip(cases, rows, strict=True) if row.metric in ("ratio", "map_kl")]
        self.domains = sorted({case.domain for case in measured})
        self.mixers = sorted({case.mixer for case in measured}, key=self._rank)

    def row(self, mixer: str, domain: str, metric: str) -> Row | None:
        return self._rows.get((mixer, domain, metric))

    def value(self, mixer: str, domain: str, metric: str) -> float | None:
        row = self.row(mixer, domain, metric)
        return row.value if row else None

    def spread(self, mixer: str, domain: str, metric: str) -> float | None:
        row = self.row(mixer, domain, metric)
        return row.spread if row else None

    def of_mixer(self, mixer: str, metric: str) -> float | None:
        """A value that is the same in every domain, such as the size of the state."""
        values = (self.value(mixer, domain, metric) for domain in self.domains)
        return next((value for value in values if value is not None), None)

    def memory(self, mixer: str) -> float | None:
        """Bytes that decoding one sequence keeps at the context: the state, and the cache of layers kept exact."""
        exact, context = is_ceiling(mixer), self.of_mixer(mixer, "context") or 0
        cache = self.of_mixer(mixer, "cache_bytes_per_token" if exact else "student_cache_bytes_per_token")
        state = 0 if exact else self.of_mixer(mixer, "state_bytes")
        return None if state is None else (state + context * (cache or 0)) or None

    @property
    def decodes(self) -> bool:
        """Whether these are decoders, which keep a state; encoders keep none."""
        return any(self.memory(mixer) for mixer in self.mixers)

    def extent(self, mixer: str) -> float | None:
        """How large a mixer is: what decoding keeps, or F in encoders."""
        return self.memory(mixer) if self.decodes else float(feature_dim(mixer) or 0) or None

    def rows_of(self, mixer: str) -> list[Row]:
        return [row for row in self.rows if parse(row.case).mixer == mixer]

    def known(self, metric: str) -> bool:
        """Whether any case has a value of it."""
        return any(row.metric == metric and row.value is not None for row in self.rows)

    def values(self, metric: str, ranked: bool) -> list[float]:
        """Every value there is of a metric but for 0, each once; ranked: of those without a budget of their own."""
        rows = (row for row in self.rows if row.metric == metric)
        mine = (row for row in rows if not (ranked and has_own_budget(parse(row.case).mixer)))
        return sorted({row.value for row in mine if row.value})

    @property
    def controls(self) -> list[str]:
        return [mixer for mixer in self.mixers if is_control(mixer) and not has_own_budget(mixer)]

    @property
    def systems(self) -> list[str]:
        """All that are to be judged: neither controls nor the ceiling, and trained on as much as all others."""
        others = (mixer for mixer in self.mixers if not is_control(mixer) and not is_ceiling(mixer))
        return [mixer for mixer in others if not has_own_budget(mixer)]

    @property
    def scored(self) -> bool:
        """Whether an answer is right or not: then that counts, and not how sure a model is of it."""
        return self.known("accuracy")

    def shortfall(self, mixer: str, domain: str) -> tuple[float, float] | None:
        """What mixers are judged by, less being better, and its spread: log ratio, or the share of wrong answers."""
        metric = "accuracy" if self.scored else "ratio"
        value, spread = self.value(mixer, domain, metric), self.spread(mixer, domain, metric) or 0.0
        if self.scored:
            return None if value is None else (1 - value, spread)
        return (math.log(value), spread / value) if value else None

    def _rank(self, mixer: str) -> tuple[bool, int, float, str]:
        """A domain without a value counts as worse than any."""
        known = [found[0] for domain in self.domains if (found := self.shortfall(mixer, domain))]
        mean = sum(known) / len(known) if known else 0.0
        return not is_ceiling(mixer), len(self.domains) - len(known), mean, mixer


def by_teacher(rows: list[Row]) -> list[Compared]:
    teachers: dict[str, list[Row]] = {}
    for row in rows:
        teachers.setdefault(parse(row.case).teacher, []).append(row)
    return [Compared(teacher, found) for teacher, found in sorted(teachers.items())]
