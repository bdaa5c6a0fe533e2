"""From runs and earlier tables to OUT.json, and from its rows alone to OUT.md, the figures and a page."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from ...errors import UserError
from ..figures import standalone
from ..pages import Page
from ..section import Figure
from .case import parse
from .compared import by_teacher
from .gaps import with_gaps
from .goals import with_goals
from .measured import measured
from .rows import Row, joined, read_rows, written
from .seeds import joined_over_seeds
from .sources import check_alike, check_told, left, runs_of
from .teacher import sections


def compare(
    sources: list[Path],
    out: Path,
    html: Path | None = None,
    goals: list[str] | None = None,
    without: list[str] | None = None,
    tell: list[str] | None = None,
    gaps: list[str] | None = None,
) -> Path:
    """Write OUT.json, OUT.md, a figure OUT-TEACHER-DOMAIN.svg for each, and the page `html`; returns the
    page, or OUT.md without one.

    sources: run directories, folders of sweeps, and earlier tables (*.json) whose rows are kept. tell: keys that rows
    of the runs are told apart by, beside the mixer's. gaps: pairs of mixers, see `with_gaps`. UserError: a source
    cannot be used, two disagree, a goal, a gap, a name in `without` or a key in `tell` matches nothing, or the files
    cannot be written.
    """
    tables = {source: read_rows(source) for source in sources if source.suffix == ".json"}
    runs = [measured(run, tell or []) for source in sources if source.suffix != ".json" for run in runs_of(source)]
    if not tables and not runs:
        raise UserError(f"{', '.join(map(str, sources))}: no finished run; give runs, folders of sweeps or OUT.json")
    check_told(runs, tell or [])
    tables, runs = left(tables, runs, without or [])
    rows = with_goals(with_gaps(joined(tables, joined_over_seeds(runs)), gaps or []), goals or [])
    for found in by_teacher(rows):
        check_alike(found)
    # What is written has endings of its own.
    out = out.with_suffix("") if out.suffix in (".json", ".md", ".html") else out
    texts = rendered(rows, out, html)
    try:
        write(texts)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written, {error.strerror}; set --out elsewhere") from error
    return html or beside(out, ".md")


def rendered(rows: list[Row], out: Path, html: Path | None) -> dict[Path, str]:
    """The files of a table by their paths."""
    shown = page(rows, out)
    texts = files(rows, shown, out)
    return texts if html is None else texts | {html: shown.html()}


def files(rows: list[Row], shown: Page, out: Path) -> dict[Path, str]:
    """OUT.json, OUT.md and its figures, by their paths."""
    texts = {beside(out, ".json"): written(rows), beside(out, ".md"): shown.markdown()}
    for part in shown.sections.values():
        for figures in part.figures:
            texts |= {out.parent / figure_name(out, figure): standalone(figure.svg) for figure in figures}
    return texts


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


def beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)
