"""The rows of docs/results/NAME.json, from which everything else is rendered."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from .case import parse

#: What is known of a case, in the order of its rows, and the unit. `STAGE_tokens` follow.
METRICS = {
    "ratio": "student / teacher perplexity",
    "stage1_ratio": "after stage 1 / teacher perplexity",
    "teacher_tuned_ratio": "tuned / teacher perplexity",
    "kl": "nats per token",
    "teacher_tuned_kl": "nats per token",
    "map_kl": "nats",
    "output_error": "share",
    "agreement": "share",
    "accuracy": "share",
    "constant_accuracy": "share",
    "teacher_accuracy": "share",
    "teacher_tuned_accuracy": "share",
    "accuracy_recovery": "student / teacher accuracy",
    "f1": "score",
    "teacher_f1": "score",
    "teacher_tuned_f1": "score",
    "f1_recovery": "student / teacher F1",
    "mcc": "score",
    "teacher_mcc": "score",
    "teacher_tuned_mcc": "score",
    "mcc_recovery": "student / teacher MCC",
    "cosine": "score",
    "teacher_cosine": "score",
    "teacher_tuned_cosine": "score",
    "cosine_recovery": "student / teacher cosine",
    "state_bytes": "bytes",
    "cache_bytes_per_token": "bytes per token",
    "student_cache_bytes_per_token": "bytes per token",
    "context": "tokens",
}
#: How the metric begins that says what a mixer leaves of another's gap; the other's words follow.
GAP = "gap / "
#: The types that each field may have.
KINDS: dict[str, tuple[type, ...]] = {
    "case": (str,),
    "metric": (str,),
    "value": (int, float, type(None)),
    "spread": (int, float, type(None)),
    "seeds": (list,),
    "unit": (str, type(None)),
    "goal": (str, type(None)),
    "command": (str, type(None)),
    "hardware": (str, type(None)),
    "commit": (str, type(None)),
}


@dataclass(frozen=True)
class Row:
    """value: the mean over seeds. spread: the sample standard deviation over them. goal: a bound on the value."""

    case: str
    metric: str
    value: float | None
    spread: float | None
    seeds: list[int]
    unit: str | None
    goal: str | None
    command: str | None
    hardware: str | None
    commit: str | None

    @property
    def key(self) -> tuple[str, str]:
        return self.case, self.metric


def read_rows(file: Path) -> list[Row]:
    """UserError names the file, and the row that does not fit."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise UserError(f"{file}: cannot be read, {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: damaged or cut off, {error}; restore it or leave it out") from error
    if not isinstance(found, list):
        raise UserError(f"{file}: holds no list of rows; give a file that compare wrote")
    return [_row(file, number, entry) for number, entry in enumerate(found, 1)]


def _row(file: Path, number: int, entry: Any) -> Row:
    names = [field.name for field in fields(Row)]
    wrong = names if not isinstance(entry, dict) or entry.keys() != set(names) else []
    wrong = wrong or [name for name in names if not isinstance(entry[name], KINDS[name])]
    if wrong:
        raise UserError(f"{file}: row {number} is not as compare writes it, see {', '.join(wrong)}; restore the file")
    try:
        parse(entry["case"])
    except ValueError as error:
        raise UserError(f"{file}: row {number}, case '{entry['case']}' is not mixer | teacher | domain") from error
    return Row(**entry)


def written(rows: list[Row]) -> str:
    """The content of NAME.json: a row to a line, so that versions can be compared."""
    lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows]
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def joined(kept: dict[Path, list[Row]], built: list[Row]) -> list[Row]:
    """Rows of earlier files and new ones, in order; a new row replaces an old one, whose goal it takes over.

    UserError: two files do not agree on a row.
    """
    rows: dict[tuple[str, str], Row] = {}
    source: dict[tuple[str, str], Path] = {}
    fresh = {row.key for row in built}
    for file, found in kept.items():
        for row in found:
            if row.key not in fresh and row != rows.get(row.key, row):
                raise UserError(
                    f"{row.case}: {source[row.key]} and {file} hold different rows for {row.metric}; "
                    "remove one of them, or give the runs"
                )
            rows[row.key], source[row.key] = row, file
    for row in built:
        old = rows.get(row.key)
        rows[row.key] = replace(row, goal=old.goal) if old else row
    return in_order(rows.values())


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By teacher, mixer and domain, and by metric as METRICS has them."""
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    case = parse(row.case)
    known = list(METRICS)
    place = known.index(row.metric) if row.metric in METRICS else len(known)
    return case.teacher, case.mixer, case.domain, place, row.metric
