"""Which runs and rows take part in a comparison."""

import sys
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from .case import Case, nearest, parse
from .compared import Compared
from .measured import Measured, given
from .rows import Row

#: What has to be the same for all mixers of one teacher, 0 aside, since those without a stage 1 have 0 tokens in it;
#: and the key that, where a row's own words give it, tells of another budget.
ALIKE = {
    "context": ("tokens of context", None),
    "allocation_tokens": ("tokens that features were shared out by", "stages.allocation.max_steps"),
    "attention_tokens": ("tokens of stage 1", "stages.attention.max_steps"),
    "logits_tokens": ("tokens of stage 2", "stages.logits.max_steps"),
}


def check_alike(found: Compared) -> None:
    """UserError where mixers were measured at different contexts, or trained on different numbers of tokens.

    Rows whose words tell that they have a budget of their own may, since they are not ranked with the others.
    """
    for metric, (what, key) in ALIKE.items():
        if len(values := found.values(metric, ranked=key is not None)) > 1:
            told = ", ".join(f"{value:,.0f}" for value in values)
            cure = f", or tell an ablation's rows apart where their commands give it, --tell {key}" if key else ""
            raise UserError(
                f"{found.teacher}: rows differ in {what} ({told}): compare them in tables of their own{cure}"
            )


def check_told(runs: list[Measured], tell: list[str]) -> None:
    """UserError for a key to tell rows apart by that no run was given."""
    known = {key for run in runs for key in given(run.command)}
    for key in tell:
        if key not in known:
            raise UserError(f"--tell {key}: no run's command gives it; {nearest(key, known)}")


def runs_of(source: Path) -> list[Path]:
    """The run, or those of a sweep's folder that finished; those that did not are told."""
    within = sorted(path.parent for path in source.glob("*/config.yaml"))
    sweep = within or (source / "multirun.yaml").exists()
    if (source / "config.yaml").exists() or not sweep:
        return [source]
    finished = [run for run in within if (run / "measurements" / "headline.json").exists()]
    for run in within:
        if run not in finished:
            print(f"{run}: left out, it did not finish", file=sys.stderr)
    return finished


def left(
    tables: dict[Path, list[Row]], runs: list[Measured], without: list[str]
) -> tuple[dict[Path, list[Row]], list[Measured]]:
    """All but these mixers, the parts of them, and the students of these teachers, which are gone before anything is
    joined."""
    cases = [parse(row.case) for rows in tables.values() for row in rows] + [
        case for run in runs for case in run.values
    ]
    known = {name for case in cases for name in (case.mixer, case.teacher)}
    for name in without:
        if name not in known:
            raise UserError(f"--without '{name}': no row is of this mixer or teacher; {nearest(name, known)}")

    def stays(case: Case) -> bool:
        return not any(name in (case.teacher, case.mixer) or case.mixer.startswith(f"{name} only=") for name in without)

    kept = {file: [row for row in rows if stays(parse(row.case))] for file, rows in tables.items()}
    values = ({case: found for case, found in run.values.items() if stays(case)} for run in runs)
    return kept, [replace(run, values=found) for run, found in zip(runs, values, strict=True) if found]
