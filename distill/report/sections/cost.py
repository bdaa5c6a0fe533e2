"""What the student costs to make and to run, beside its teacher, and from which length on it pays off."""

from typing import Any

import numpy as np

from ..plots import Line, curves
from ..quantities import count, duration, number, times
from ..run import Run
from ..section import Fact, Figure, Section, Table
from ..verdict import listed
from .headline import STAGES

WHO = ("teacher", "student")
#: What is less for the better, how it is called and told: as a sentence has it, as a column, and with its unit.
MEASURES = {
    "prefill": ("reading a text", "Prefill", "ms"),
    "decode": ("decoding a token", "Decode", "ms"),
    "kept_bytes": ("what is kept for decoding", "Kept", "MiB"),
    "peak_bytes": ("memory while reading", "Peak while reading", "MiB"),
}
UNITS = {"ms": 1e-3, "MiB": 2**20}


def section(run: Run) -> Section:
    found = run.measurement("cost")
    known = [name for name in MEASURES if found[name]]
    crossing = {name: crossover(found, name) for name in known}
    longest = found["contexts"][-1]
    return Section(
        title="Cost",
        intro=f"Measured on {found['hardware']}, {found['precision']}, one text of random tokens, the median of "
        "several. Prefill reads the whole text; decoding is one token after it, from what was kept of it: a state of "
        "fixed size, or keys and values of every token. The crossover is the length from which on the student needs "
        "less at every length measured. Floating-point operations are estimated from the weights that a token goes "
        "through: 2 for each forwards, 2 backwards, and 2 more where it is trained, without those of attention itself.",
        data=found | {"crossover": crossing},
        verdict=verdict(found, crossing),
        numbers=[
            Fact(
                MEASURES[name][0].capitalize(),
                f"from {at:,} tokens" if at else "not yet",
                f"the student needs less · {times(ratio(found, name, -1))} at {longest:,} tokens",
            )
            for name, at in crossing.items()
        ],
        facts=made(found),
        tables=[table for table in (length_table(found, known), stage_table(found)) if table.rows],
        figures=[[figure(found, name) for name in known]],
        notes=notes(found),
    )


def crossover(found: dict[str, Any], name: str) -> int | None:
    """The shortest measured length from which on the student needs less than the teacher; None: not at the longest."""
    at = None
    for place in reversed(range(len(found["contexts"]))):
        if found[name]["student"][place] >= found[name]["teacher"][place]:
            break
        at = found["contexts"][place]
    return at


def ratio(found: dict[str, Any], name: str, place: int) -> float | None:
    teacher = found[name]["teacher"][place]
    return found[name]["student"][place] / teacher if teacher else None


def verdict(found: dict[str, Any], crossing: dict[str, int | None]) -> str:
    longest = found["contexts"][-1]
    sooner = [f"{MEASURES[name][0]} from {at:,} tokens on" for name, at in crossing.items() if at]
    never = [MEASURES[name][0] for name, at in crossing.items() if not at]
    said = [f"On {found['hardware']} the student needs less than its teacher for {listed(sooner)}."] if sooner else []
    if never:
        said.append(f"For {listed(never)} it does not up to {longest:,} tokens.")
    if found["decode"]:
        student, teacher = (times(found["decode"][who][-1] / found["decode"][who][0]) for who in ("student", "teacher"))
        said.append(
            f"A token decoded after {longest:,} takes {student} the time of one after {found['contexts'][0]:,}, and "
            f"the teacher's {teacher}."
        )
    return " ".join(said)


def made(found: dict[str, Any]) -> list[Fact]:
    """What the student took to make, and its teacher where that is known."""
    facts = []
    if found["flops"]:
        tokens = sum(found["tokens"].values())
        facts.append(
            Fact("To make it", f"{flops(sum(found['flops'].values()))}", f"{count(tokens)} tokens, all stages")
        )
    if teacher := found["teacher_training"]:
        told = f"{count(teacher['tokens'])} tokens in {duration(teacher['seconds'])} on {teacher['hardware']}"
        told += f", beyond what {teacher['beyond']} took" if teacher.get("beyond") else ""
        facts.append(Fact("Its teacher took", flops(3 * found["flops_per_token"] * teacher["tokens"]), told))
    return facts


def flops(value: float | None) -> str:
    return f"{value:.2g} FLOP" if value is not None else "–"


def length_table(found: dict[str, Any], known: list[str]) -> Table:
    columns = ["Tokens"]
    for name in known:
        _, head, unit = MEASURES[name]
        columns += [f"{head}, teacher, {unit}", f"student, {unit}", "ratio"]
    rows = []
    for place, context in enumerate(found["contexts"]):
        row = [f"{context:,}"]
        for name in known:
            scale = UNITS[MEASURES[name][2]]
            row += [number(found[name][who][place] / scale) for who in WHO] + [times(ratio(found, name, place))]
        rows.append(row)
    return Table("By length of the text", columns, rows)


def stage_table(found: dict[str, Any]) -> Table:
    rows = [
        [
            STAGES.get(stage, stage),
            count(tokens),
            duration(found["seconds"].get(stage)),
            count(tokens / found["seconds"][stage]) if found["seconds"].get(stage) else "–",
            flops(found["flops"].get(stage)),
        ]
        for stage, tokens in found["tokens"].items()
        if tokens
    ]
    return Table("What the stages took", ["Stage", "Tokens", "Time", "Tokens per second", "Operations"], rows)


def figure(found: dict[str, Any], name: str) -> Figure:
    told, head, unit = MEASURES[name]
    lengths, scale = np.array(found["contexts"], dtype=float), UNITS[unit]
    lines = [Line(who, lengths, np.array(found[name][who], dtype=float) / scale) for who in WHO]
    spans = [
        f"{who} {number(found[name][who][0] / scale)} → {number(found[name][who][-1] / scale)} {unit}" for who in WHO
    ]
    title = f"{told.capitalize()}, by length"
    alt = f"{title}: from {found['contexts'][0]:,} to {found['contexts'][-1]:,} tokens {'; '.join(spans)}."
    return Figure(
        f"cost-{name}", f"{title}.", alt, curves(lines, "tokens", f"{head.lower()}, {unit}", alt, doubling=True)
    )


def notes(found: dict[str, Any]) -> list[str]:
    if found["contexts"][-1] < found["wanted"][-1]:
        return [f"There is no memory for the teacher or the student to read {2 * found['contexts'][-1]:,} tokens here."]
    return []
