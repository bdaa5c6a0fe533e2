"""From runs and earlier tables to OUT.json, and from its rows alone to OUT.md, the figures and a page."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from ...errors import UserError
from ..figures import standalone
from ..pages import Page
from ..section import Figure
from .case import nearest, parse
from .compared import Compared, by_teacher
from .goals import with_goals
from .measured import Measured, measured
from .rows import Row, joined, read_rows, written
from .seeds import joined_over_seeds
from .teacher import sections

#: What has to be the same for all mixers of one teacher, 0 aside: those without a stage 1 have 0 tokens in it.
ALIKE = {
    "context": "tokens of context",
    "attention_tokens": "tokens of stage 1",
    "logits_tokens": "tokens of stage 2",
}


def compare(
    sources: list[Path],
    out: Path,
    html: Path | None = None,
    goals: list[str] | None = None,
    without: list[str] | None = None,
) -> Path:
    """Write OUT.json, OUT.md, a figure OUT-TEACHER-DOMAIN.svg for each, and the page `html`; returns the
    page, or OUT.md without one.

    sources: run directories, folders of sweeps, and earlier tables (*.json) whose rows are kept. UserError: a source
    cannot be used, two disagree, a goal or a mixer in `without` matches no row, or the files cannot be written.
    """
    tables = {source: read_rows(source) for source in sources if source.suffix == ".json"}
    runs = [measured(run) for source in sources if source.suffix != ".json" for run in runs_of(source)]
    if not tables and not runs:
        raise UserError(f"{', '.join(map(str, sources))}: no finished run; give runs, folders of sweeps or OUT.json")
    tables, runs = left(tables, runs, without or [])
    rows = with_goals(joined(tables, joined_over_seeds(runs)), goals or [])
    for found in by_teacher(rows):
        check_alike(found)
    # What is written has endings of its own.
    out = out.with_suffix("") if out.suffix in (".json", ".md", ".html") else out
    texts = rendered(rows, out, html)
    try:
        write(texts)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written, {error.strerror}; set --out elsewhere") from error
    return html or _beside(out, ".md")


def check_alike(found: Compared) -> None:
    """UserError where mixers were measured at different contexts, or trained on different numbers of tokens."""
    for metric, what in ALIKE.items():
        if len(values := found.values(metric)) > 1:
            told = ", ".join(f"{value:,.0f}" for value in values)
            raise UserError(f"{found.teacher}: rows differ in {what} ({told}): compare them in tables of their own")


def runs_of(source: Path) -> list[Path]:
    """The run, or those of a sweep's folder that finished; those that did not are told."""
    if (source / "config.yaml").exists() or not (
        (source / "multirun.yaml").exists() or list(source.glob("*/config.yaml"))
    ):
        return [source]
    within = sorted(path.parent for path in source.glob("*/config.yaml"))
    finished = [run for run in within if (run / "measurements" / "headline.json").exists()]
    for run in within:
        if run not in finished:
            print(f"{run}: left out, it did not finish", file=sys.stderr)
    return finished


def left(
    tables: dict[Path, list[Row]], runs: list[Measured], without: list[str]
) -> tuple[dict[Path, list[Row]], list[Measured]]:
    """All but these mixers and the parts of them, which are gone before anything is joined."""
    known = {parse(row.case).mixer for rows in tables.values() for row in rows}
    known |= {case.mixer for run in runs for case in run.values}
    for mixer in without:
        if mixer not in known:
            raise UserError(f"--without '{mixer}': no row is of this mixer; {nearest(mixer, known)}")

    def stays(mixer: str) -> bool:
        return not any(mixer == each or mixer.startswith(f"{each} only=") for each in without)

    kept = {file: [row for row in rows if stays(parse(row.case).mixer)] for file, rows in tables.items()}
    values = ({case: found for case, found in run.values.items() if stays(case.mixer)} for run in runs)
    return kept, [replace(run, values=found) for run, found in zip(runs, values, strict=True) if found]


def rendered(rows: list[Row], out: Path, html: Path | None) -> dict[Path, str]:
    """The files of a table by their paths."""
    shown = page(rows, out)
    texts = {_beside(out, ".json"): written(rows), _beside(out, ".md"): shown.markdown()}
    for part in shown.sections.values():
        for figures in part.figures:
            texts |= {out.parent / figure_name(out, figure): standalone(figure.svg) for figure in figures}
    return texts if html is None else texts | {html: shown.html()}


def page(rows: list[Row], out: Path) -> Page:
    teachers = by_teacher(rows)
    cases = [parse(row.case) for row in rows]
    identity = {
        "teachers": [found.teacher for found in teachers],
        "domains": sorted({case.domain for case in cases}),
        "mixers": [f"{len({mixer for each in teachers for mixer in each.systems})} and controls"],
    }
    parts = {name: part for found in teachers for name, part in sections(found).items()}
    told = [(name, ", ".join(values)) for name, values in identity.items()]
    return Page("Mixers compared", told, parts, lambda *place: quote(figure_name(out, place[-1])))


def figure_name(out: Path, figure: Figure) -> str:
    return f"{out.name}-{figure.name}.svg"


def write(texts: dict[Path, str]) -> None:
    """Write every file beside its place before any is renamed, so that a reader never meets half of one."""
    with ExitStack() as scratches:
        ready = []
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratches.enter_context(TemporaryDirectory(prefix=".compare-", dir=path.parent))
            ready.append((Path(scratch) / "fresh", path))
            _write_text(ready[-1][0], text)
        for fresh, path in ready:
            fresh.replace(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)
