"""Collects the sections of a run and writes report.json, report.md, report.html and figures/."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError
from ..names import slug
from .figures import standalone
from .pages import Page
from .run import ArtefactError, Run
from .section import Figure, Section, Skipped
from .sections import check, load

#: The top level of report.json, whichever sections were asked for, and the order of the page.
CONTRACT = ("headline", "fidelity", "transfer", "contribution", "length", "cost", "provenance")

#: Of report.json, see schema.json.
VERSION = 1

log = logging.getLogger(__name__)


def render(run_dir: Path, sections: list[str]) -> Path:
    """Rebuild RUN_DIR/report with the sections asked for, and the provenance; returns that folder.

    A section whose artefacts are missing or broken is skipped with its reason. UserError: `run_dir` is not a run
    directory, a section is unknown, or the folder cannot be written.
    """
    check(sections)
    run = Run(run_dir)
    parts = {name: collect(run, name, [*sections, "provenance"]) for name in dict.fromkeys([*CONTRACT, *sections])}
    try:
        return write(run, parts)
    except OSError as error:
        raise UserError(f"{run_dir / 'report'}: cannot be written, {error.strerror}") from error


def collect(run: Run, name: str, asked: list[str]) -> Section | Skipped:
    """One section, or why there is none. Whatever goes wrong in it stays in it."""
    if name not in asked:
        return Skipped("not asked for in report.sections")
    try:
        return load(name)(run)
    except ArtefactError as error:
        return Skipped(str(error))
    except Exception as error:
        log.warning("report: section %s failed", name, exc_info=True)
        return Skipped(
            f"measurements/{name}.json, or what goes with it, is not as expected: {type(error).__name__}: {error}"
        )


def write(run: Run, parts: dict[str, Section | Skipped]) -> Path:
    """Write the whole report beside its place and rename it, so that a reader never meets half of one."""
    sections = {name: part for name, part in parts.items() if isinstance(part, Section)}
    skipped = {name: part.reason for name, part in parts.items() if isinstance(part, Skipped)}
    page = Page(run.title, run.identity, sections, figure_file, skipped)
    report = run.path / "report"
    with TemporaryDirectory(prefix=".report-", dir=run.path) as scratch:
        fresh = Path(scratch) / "fresh"
        (fresh / "figures").mkdir(parents=True)
        _write_text(fresh / "report.json", json.dumps(as_data(parts), indent=2, ensure_ascii=False) + "\n")
        _write_text(fresh / "report.html", page.html())
        _write_text(fresh / "report.md", page.markdown())
        for name, part in sections.items():
            for row, figures in enumerate(part.figures):
                for column, figure in enumerate(figures):
                    _write_text(fresh / figure_file(name, row, column, figure), standalone(figure.svg))
        if report.exists():
            report.rename(Path(scratch) / "old")
        fresh.rename(report)
    return report


def as_data(parts: dict[str, Section | Skipped]) -> dict[str, Any]:
    """The content of report.json, as schema.json has it."""
    return {"version": VERSION} | {
        name: part.data if isinstance(part, Section) else {"skipped": part.reason} for name, part in parts.items()
    }


def figure_file(section: str, row: int, column: int, figure: Figure) -> str:
    """Where a figure lies in the report."""
    return f"figures/{section}-{row + 1}-{column + 1}-{slug(figure.name)}.svg"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
