"""Timings of the map loss as rows of docs/results/NAME.json, and from these a table."""

import re

from ..report.compare.case import Case, mixer_words, parse
from ..report.compare.rows import Row
from ..report.compare.tables import goal_table
from ..report.quantities import DASH, number, size, times
from ..report.section import Section, Table
from .maploss import Layer, Measured

TITLE = "Speed of the kernels"
#: What the streamed loss is to reach on a GPU at this length: milliseconds, bytes and the error of its gradient.
AT = 16384
GOALS = {"fwdbwd_ms": "<= 10", "peak_bytes": "<= 500000000", "error": "<= 0.01"}


def rows(
    layer: Layer, found: list[Measured], errors: dict[str, float], rate: float, command: str, hardware: str,
    commit: str | None,
) -> list[Row]:  # fmt: skip
    """rate: floating-point operations a second, of which the floor of every length is made."""
    shape = f"{layer.shape.heads} heads of {layer.shape.head_dim}"
    mixer = mixer_words(layer.options["map"], layer.options, layer.options["features"])
    on_gpu = layer.device.type == "cuda"

    def row(domain: str, metric: str, value: float | None, unit: str, way: str, length: int | None) -> Row:
        wanted = on_gpu and way == "streamed" and length in (AT, None)
        goal = GOALS.get(metric) if wanted else None
        case = str(Case(mixer, shape, f"map loss {domain}, {hardware}"))
        return Row(case, metric, value, None, [0], unit, goal, command, hardware, commit)

    made = []
    for each in found:
        place = f"at {each.length} tokens, {each.way}"
        made.append(row(place, "fwdbwd_ms", 1e3 * each.seconds, "ms", each.way, each.length))
        floor = 1e3 * layer.operations(each.length) / rate
        made.append(row(place, "floor_ms", floor, "ms at the rate of a matrix product", each.way, each.length))
        if each.peak_bytes is not None:
            made.append(row(place, "peak_bytes", each.peak_bytes, "bytes", each.way, each.length))
    made += [
        row(f"gradient, {way}", "error", value, "share of the largest", way, None) for way, value in errors.items()
    ]
    return made


def section(name: str, there: list[Row]) -> Section:
    values = {(place, row.metric): row.value for row in there if (place := place_of(row))}
    lines = []
    for place in dict.fromkeys(place for place, _ in values):
        length, way = place
        taken, floor = values[place, "fwdbwd_ms"], values[place, "floor_ms"]
        over = times(taken / floor) if taken and floor else DASH
        lines.append([way, f"{length:,}", number(taken), number(floor), over, size(values.get((place, "peak_bytes")))])
    errors = [[parse(row.case).domain.split(", ")[1], number(row.value)] for row in there if row.metric == "error"]
    goals = goal_table(there)
    tables = [
        *([goals] if goals.rows else []),
        Table(
            "Forwards and backwards, side by side, the median of rounds",
            ["Way", "Tokens", "ms", "Floor, ms", "Over it", "Memory at its peak"],
            lines,
        ),
        Table("Error of the gradient for the frequencies, of its largest value", ["Way", "Error"], errors),
    ]
    return Section(
        title=name,
        intro="KL of a layer's attention maps, one text, all queries, with its gradients for the mixer. Floor: what "
        "the products of one pass forwards and back take at the rate of a large matrix product on the same machine. "
        f"{'; '.join(dict.fromkeys(row.command or '' for row in there))}",
        data={},
        tables=tables,
    )


def place_of(row: Row) -> tuple[int, str] | None:
    """Length and way of a timing."""
    found = re.match(r"map loss at (\d+) tokens, ([^,]+),", parse(row.case).domain)
    return (int(found[1]), found[2]) if found else None
