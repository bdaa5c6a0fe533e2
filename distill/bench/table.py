"""Timings as rows of docs/results/NAME.json, and from these alone NAME.md and a figure for each kind and batch."""

import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ..errors import UserError
from ..measure.steps import WHO
from ..names import file_name
from ..report.compare.build import beside, figure_name, files, write
from ..report.compare.case import Case, parse
from ..report.compare.rows import Row, joined, read_rows
from ..report.compare.tables import GOALS, goal_table
from ..report.pages import Page
from ..report.plots import Line, curves
from ..report.quantities import number, quotient, size, with_error
from ..report.section import Figure, Section, Table, without_dashes
from ..report.terminal import told
from . import PROGRAM
from .serving import REST, Timing

TITLE = "Speed beside the teacher"
#: What its pages are of.
KINDS = ("decode", "prefill", "train")
#: The shortest and the longest length between which decoding is to take the same time.
FLAT_FROM, FLAT_TO = 1024, 16384
FLAT = "<= 1.15"
#: How much faster than its teacher a student is to decode on a GPU, at this length and batch.
FASTER, FASTER_AT = ">= 2", (16384, 8)
#: And to take a step of training, by length.
TRAINED = {4096: ">= 1.1", 16384: ">= 1.7"}

#: What the column of a step of training without attention is.
WITHOUT = "Without attention: the teacher's step where o is q + k + v, about the most that any could gain. "


def rows(
    found: list[Timing], mixer: str, teacher: str, command: str, hardware: str, commit: str | None, on_gpu: bool
) -> list[Row]:
    """Every timing, and of each batch how flat decoding is."""

    def row(
        domain: str, metric: str, value: float, unit: str, goal: str | None = None, spread: float | None = None
    ) -> Row:
        case = str(Case(mixer, teacher, f"{domain}, {hardware}"))
        return Row(case, metric, value, spread, [0], unit, goal, command, hardware, commit)

    made = []
    for each in found:
        place = f"{each.what} at {each.length} tokens, batch {each.batch}"
        goal = wanted_of(each) if on_gpu else None
        made.append(row(place, "speedup", each.speedup, "teacher / student seconds", goal, each.error))
        made += [row(place, f"{who}_ms", 1e3 * seconds, "ms") for who, seconds in each.seconds.items()]
        made += [row(place, f"{who}_bytes", kept, "bytes") for who, kept in (each.kept_bytes or {}).items()]
    for batch in dict.fromkeys(each.batch for each in found if each.what == "decode"):
        times = [
            each.seconds["student"]
            for each in found
            if each.what == "decode" and each.batch == batch and FLAT_FROM <= each.length <= FLAT_TO
        ]
        if len(times) > 1:
            most = max(times) / min(times)
            made.append(row(f"decode from {FLAT_FROM} to {FLAT_TO} tokens, batch {batch}", "slowdown", most, "×", FLAT))
    return made


def wanted_of(found: Timing) -> str | None:
    if found.what == "train":
        return TRAINED.get(found.length)
    return FASTER if found.what == "decode" and (found.length, found.batch) == FASTER_AT else None


def writable(out: Path, kinds: Collection[str]) -> None:
    """UserError where OUT cannot be written, or be added to: before minutes of measuring, not after.

    kinds: what `distill.bench` has timed where a page of this one has tables for it.
    """
    if not out.name or out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in one")
    file = beside(out, ".json")
    for row in read_rows(file) if file.exists() else []:
        what = (row.command or "").removeprefix(f"{PROGRAM} ").split(" ")[0]
        if what not in kinds:
            raise UserError(f"--out {out} holds what another command, {what}, has timed; name another file")
    there = next(each for each in file.absolute().parents if each.exists())
    if not os.access(file if file.exists() else there, os.W_OK) or not there.is_dir():
        raise UserError(f"--out {out} cannot be written: name a file in a folder that can")


def save(out: Path, new: list[Row], title: str, section: Callable[[str, list[Row]], Section]) -> Path:
    """OUT.json with these rows in the place of older ones of the same cases, OUT.md and figures; returns OUT.md.

    The page has a section for every mixer, teacher and machine.
    """
    file = beside(out, ".json")
    all_rows = joined({file: read_rows(file)} if file.exists() else {}, new)
    sections = sections_of(all_rows, section)
    page = Page(title, [], sections, lambda *place: quote(figure_name(out, place[-1])))
    write(files(all_rows, page, out))
    return beside(out, ".md")


def sections_of(rows: list[Row], section: Callable[[str, list[Row]], Section]) -> dict[str, Section]:
    """By their titles."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        case = parse(row.case)
        parts.setdefault(f"{case.mixer} | {case.teacher} | {row.hardware}", []).append(row)
    return {name: section(name, there) for name, there in parts.items()}


def printed(new: list[Row], section: Callable[[str, list[Row]], Section], page: Path) -> str:
    """What was timed, for a terminal, without goals; and where it is kept."""
    sections = sections_of(new, section).values()
    shown = (replace(each, tables=[table for table in each.tables if table.caption != GOALS]) for each in sections)
    return "\n\n".join([*map(told, shown), str(page)])


def section(name: str, there: list[Row]) -> Section:
    places = sorted({found for row in there if (found := place_of(row))})
    values = {(place_of(row), row.metric): row for row in there}
    kinds = sorted({(what, batch) for what, batch, _ in places})
    bounded = any(row.metric == f"{REST}_ms" for row in there)
    lines = [
        [
            what,
            f"{batch}",
            f"{length:,}",
            *(number(values[(what, batch, length), f"{who}_ms"].value) for who in WHO),
            with_error(values[(what, batch, length), "speedup"].value, values[(what, batch, length), "speedup"].spread),
            *(kept((what, batch, length), who, values) for who in WHO),
            *(at_most((what, batch, length), values) if bounded else []),
        ]
        for what, batch, length in places
    ]
    columns = [
        "Of",
        "Batch",
        "Tokens",
        "Teacher, ms",
        "Student, ms",
        "Teacher / student",
        "Teacher keeps",
        "Student keeps",
        *(["Without attention, ms", "Teacher / that"] if bounded else []),
    ]
    goals = goal_table(there)
    caption = (
        "Side by side, the medians of rounds, of teacher / student as well; ± half of what lies between its quartiles"
    )
    tables = [*([goals] if goals.rows else []), without_dashes(Table(caption, columns, lines, labels=2))]
    return Section(
        title=name,
        intro="Decoding is one token after so many in every row; prefill reads them whole and keeps what the next "
        "needs; train reads them whole and goes back to all weights. "
        f"{WITHOUT if bounded else ''}"
        f"{'; '.join(dict.fromkeys(row.command or '' for row in there))}",
        data={},
        tables=tables,
        figures=[[figure(what, batch, name, places, values) for what, batch in kinds]],
    )


def place_of(row: Row) -> tuple[str, int, int] | None:
    """What, batch and length of a row; None of one that is of several lengths."""
    found = re.match(r"(\w+) at (\d+) tokens, batch (\d+),", parse(row.case).domain)
    return (found[1], int(found[3]), int(found[2])) if found else None


def kept(place: tuple[str, int, int], who: str, values: dict[tuple[tuple[str, int, int] | None, str], Row]) -> str:
    row = values.get((place, f"{who}_bytes"))
    return size(row.value if row else None)


def at_most(place: tuple[str, int, int], values: dict[tuple[tuple[str, int, int] | None, str], Row]) -> list[str]:
    """What a step takes without attention, and so what any could gain."""
    rest, teacher = (row.value if (row := values.get((place, f"{who}_ms"))) else None for who in (REST, WHO[0]))
    return [number(rest), quotient(teacher, rest)]


def figure(
    what: str,
    batch: int,
    name: str,
    places: list[tuple[str, int, int]],
    values: dict[tuple[tuple[str, int, int] | None, str], Row],
) -> Figure:
    lengths = [length for kind, rows_, length in places if (kind, rows_) == (what, batch)]
    lines = [
        Line(
            who,
            np.array(lengths, dtype=float),
            np.array([values[(what, batch, length), f"{who}_ms"].value for length in lengths], dtype=float),
        )
        for who in WHO
    ]
    title = f"{what}, batch {batch}, {name}"
    alt = f"{title}: " + "; ".join(f"{line.label} {', '.join(map(number, line.y))} ms" for line in lines)
    drawing = curves(lines, "tokens", "ms", alt, doubling=True)
    return Figure(file_name(f"{what}-{batch}-{name}"), f"{title}; milliseconds.", alt, drawing)
