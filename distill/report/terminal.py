"""Tables as they are read in a terminal."""

import textwrap

from .section import Section, Table

#: Letters to a line of text.
WIDTH = 100


def aligned(table: Table) -> list[str]:
    """Its rows: what names a row to the left, numbers to the right."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    return [
        "  ".join(
            cell.ljust(width) if place < table.labels else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def wrapped(text: str) -> str:
    """A path stays whole, to be copied."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def told(section: Section) -> str:
    """Its title, what its numbers mean, tables and notes, with a line between."""
    tables = ["\n".join([table.caption, *aligned(table)]) for table in section.tables]
    intro, *notes = (wrapped(text) for text in [section.intro, *section.notes])
    return "\n\n".join([section.title, intro, *tables, *notes])
