"""What a section hands to the page. All text is plain: the page escapes it."""

from dataclasses import dataclass, field, replace
from typing import Any

from .quantities import DASH


@dataclass
class Fact:
    """A value with its name, and what helps to read it."""

    label: str
    value: str
    detail: str = ""


@dataclass
class Table:
    """rows: cells as they are to be read. labels: how many leading columns name a row; the others are numbers.

    aside: rows that stand back behind the others.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    labels: int = 1
    aside: frozenset[int] = frozenset()


@dataclass
class Figure:
    """name: becomes part of a file name. svg: a drawing with its alternative text, see `figures.draw`.

    wide: a picture of `figures.WIDE` inches, which takes the page for itself.
    """

    name: str
    caption: str
    alt: str
    svg: str
    wide: bool = False


@dataclass
class Section:
    """One part of the report.

    intro: what the numbers mean. data: goes into report.json as it is. verdict: the answer in a sentence or two,
    computed from the data. numbers: what the eye should meet first. figures: rows of those to be compared.
    notes: what is absent or must not be misread.
    """

    title: str
    intro: str
    data: dict[str, Any]
    verdict: str = ""
    numbers: list[Fact] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[list[Figure]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Skipped:
    """A section that is not in the report, and why."""

    reason: str


def without_dashes(table: Table) -> Table:
    """Without the columns that have nothing to tell."""
    told = [at for at in range(len(table.columns)) if any(row[at] != DASH for row in table.rows)]
    return replace(
        table,
        columns=[table.columns[at] for at in told],
        rows=[[row[at] for at in told] for row in table.rows],
        labels=sum(at < table.labels for at in told),
    )
