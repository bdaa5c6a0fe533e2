"""Timings of a layer as rows of docs/results/NAME.json, and from these tables."""

import re
from dataclasses import dataclass

from ..report.compare.case import Case, mixer_words, parse
from ..report.compare.rows import Row
from ..report.compare.tables import goal_table
from ..report.quantities import DASH, number, quotient, size
from ..report.section import Section, Table, without_dashes
from . import by_group, by_kernel
from .attention import KERNELS, SOFTMAX, TOKENS
from .layer import Layer, Measured

TITLE = "Speed of the kernels"
#: What its pages are of.
KINDS = ("attention", "maploss", "step", "stage1", "stage2")


@dataclass(frozen=True)
class Goals:
    """What a way is to reach on a GPU with the layer that goals are for, by metric: at one length, None for every one.

    metric: what is timed, in milliseconds; times: how often to a round, one after the other without waiting, as in
    training; graphs: whether as CUDA graphs, where it is not one already. over: the way that its speedup is over.
    """

    what: str
    metric: str
    times: int
    way: str
    length: int | None
    wanted: dict[str, str]
    graphs: bool = True
    over: str | None = None


MAP_LOSS = Goals(
    "map loss",
    "fwdbwd_ms",
    4,
    "streamed",
    16384,
    {"fwdbwd_ms": "<= 10", "peak_bytes": "<= 500000000", "error": "<= 0.01"},
)
ATTENTION = Goals("attention", "fwdbwd_ms", 10, KERNELS, None, {"fwdbwd_ms": "<= 1.3", "error": "<= 0.01"})
STEP = Goals("step", "step_ms", 100, "linear, kernel", None, {"step_ms": "<= 0.02", "error": "<= 0.01"})
STAGE_1 = Goals("stage 1", "fwdbwd_ms", 4, "as a run", 4096, {"speedup": ">= 3"}, False, "dense (compiled)")
STAGE_2 = Goals("stage 2", "fwdbwd_ms", 4, "as a run", None, {}, False, "plain")
ALL = (ATTENTION, MAP_LOSS, STEP, STAGE_1, STAGE_2)
#: The layer that goals are for.
MIXER, SHAPE = "exponential F=128", "12 heads of 64"
#: Metrics that are times of a way, and what is held to float64.
TIMED = {goals.metric for goals in ALL}
ERRORS = {"attention": "a gradient", "map loss": "a gradient", "step": "an output"}


def rows(
    layer: Layer, goals: Goals, found: list[Measured], floors: dict[int, float], errors: dict[str, float],
    command: str, hardware: str, commit: str | None,
) -> list[Row]:  # fmt: skip
    """floors: seconds, by length."""
    shape, mixer = layer.words, mixer_words(layer.name, layer.options, layer.feature_dim)

    def row(domain: str, metric: str, value: float, unit: str, way: str, length: int | None) -> Row:
        there = goals.length in (None, length) or length is None
        wanted = layer.device.type == "cuda" and way == goals.way and there and (mixer, shape) == (MIXER, SHAPE)
        case = str(Case(mixer, shape, f"{goals.what} {domain}, {hardware}"))
        goal = goals.wanted.get(metric) if wanted else None
        return Row(case, metric, value, None, [0], unit, goal, command, hardware, commit)

    made = []
    for each in found:
        place = f"at {each.length} tokens, {each.way}"
        made.append(row(place, goals.metric, 1e3 * each.seconds, "ms", each.way, each.length))
        if each.way != SOFTMAX:
            made.append(row(place, "floor_ms", 1e3 * floors[each.length], "ms", each.way, each.length))
        if each.peak_bytes is not None:
            made.append(row(place, "peak_bytes", each.peak_bytes, "bytes", each.way, each.length))
    seconds = {(each.way, each.length): each.seconds for each in found}
    for way, length in seconds:
        if way == goals.way and (goals.over, length) in seconds:
            place, over = f"at {length} tokens, {way}", seconds[str(goals.over), length]
            made.append(row(place, "speedup", over / seconds[way, length], f"× {goals.over}", way, length))
    for way, value in errors.items():
        made.append(row(f"error, {way}", "error", value, "share of the largest", way, None))
    return made


def section(name: str, there: list[Row]) -> Section:
    """Of one mixer, shape and machine: what was timed of it, each in tables of its own."""
    goals, tables = goal_table(sorted(there, key=in_order)), []
    for what in dict.fromkeys(found[0] for row in there if (found := place_of(row))):
        tables += [timing_table(what, there), *([error_table(what, there)] if what in ERRORS else [])]
    kernels = by_kernel.table(there)
    tables += [*by_group.tables(there), *([kernels] if kernels.rows else [])]
    return Section(
        title=name,
        intro=f"A layer forwards and backwards, of {TOKENS['cuda']:,} tokens in all on a GPU, {TOKENS['cpu']:,} on a "
        "CPU, in texts of so many; its loss, of one text; of decoding a step forwards, of 8 texts; of the "
        "stages a step. On a GPU as CUDA graphs, and the memory of one step by itself. Floor, of all but softmax: "
        "what its products, made once, take at the rate of a large matrix product on the same machine, or what "
        "reading and writing take at that of a large copy, whichever is more. Plain: by PyTorch, of a stage with "
        "transformers' own modules; dense: with whole maps in memory; as a run: with all that a stage has. "
        f"{'; '.join(dict.fromkeys(row.command or '' for row in there))}",
        data={},
        tables=[*([goals] if goals.rows else []), *tables],
        notes=by_kernel.notes(there),
    )


def timing_table(what: str, there: list[Row]) -> Table:
    values = {(place, row.metric): row.value for row in there if (place := place_of(row)) and place[0] == what}
    taken = {place: value for (place, metric), value in values.items() if metric in TIMED}
    lines = []
    for place in sorted(taken, key=lambda place: place[1]):
        _, length, way = place
        softmax, floor = taken.get((what, length, SOFTMAX)), values.get((place, "floor_ms"))
        lines.append(
            [
                way,
                f"{length:,}",
                number(taken[place]),
                quotient(softmax, taken[place]) if way != SOFTMAX else DASH,
                number(floor),
                quotient(taken[place], floor),
                size(values.get((place, "peak_bytes"))),
            ]
        )
    columns = ["Way", "Tokens", "ms", "Softmax / it", "Floor, ms", "Over it", "Memory at its peak"]
    return without_dashes(Table(f"{what.capitalize()}, side by side, the median of rounds", columns, lines))


def error_table(what: str, there: list[Row]) -> Table:
    start = f"{what} error, "
    lines = [
        [domain.removeprefix(start), number(row.value)]
        for row in there
        if row.metric == "error" and (domain := domain_of(row)).startswith(start)
    ]
    caption = f"{what.capitalize()}: largest error of {ERRORS[what]}, of its largest value"
    return Table(caption, ["Way", "Error"], lines)


def in_order(row: Row) -> list[str]:
    """Of lengths, the shorter first."""
    return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", row.case)]


def place_of(row: Row) -> tuple[str, int, str] | None:
    """What is timed, length and way; None of an error."""
    found = re.match(r"(.+) at (\d+) tokens, (.+)", domain_of(row))
    return (found[1], int(found[2]), found[3]) if found else None


def domain_of(row: Row) -> str:
    """Without the machine, which has commas of its own."""
    return parse(row.case).domain.removesuffix(f", {row.hardware}")
