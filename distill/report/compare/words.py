"""What a comparison says in sentences."""

import math
from collections.abc import Iterable

from ..quantities import count, size
from ..verdict import each, listed
from .compared import Compared
from .rows import Row

STAGES = {"attention_tokens": "stage 1", "logits_tokens": "stage 2"}


def verdict(found: Compared) -> str:
    """The best system and the best control, where there are such."""
    systems = [mixer for mixer in found.systems if ratios(found, mixer)]
    controls = [mixer for mixer in found.controls if ratios(found, mixer)]
    told = []
    if systems:
        state = found.memory(systems[0])
        nearest = each(ratios(found, systems[0]), of=" the teacher's")
        told.append(f"{systems[0]} comes nearest: {nearest}{f', with a state of {size(state)}' if state else ''}.")
    if controls:
        told.append(f"The best control, {controls[0]}, is at {each(ratios(found, controls[0]))}.")
    return " ".join(told)


def ratios(found: Compared, mixer: str) -> dict[str, float]:
    values = {domain: found.value(mixer, domain, "ratio") for domain in found.domains}
    return {domain: value for domain, value in values.items() if value is not None}


def setting(found: Compared) -> str:
    """The sentence that says how: context, tokens, seeds, machine, code, and the command when there is one."""
    rows = [row for mixer in found.mixers for row in found.rows_of(mixer)]
    context = listed_values(f"{row.value:,.0f}" for row in rows if row.metric == "context" and row.value is not None)
    tokens = {
        stage: [row.value for row in rows if row.metric == metric and row.value is not None]
        for metric, stage in STAGES.items()
    }
    parts = [
        f"Context {context} tokens" if context else "",
        *(f"{' or '.join(map(count, sorted(set(seen))))} tokens in {stage}" for stage, seen in tokens.items() if seen),
        f"seeds {listed_values(str(seed) for seed in sorted({seed for row in rows for seed in row.seeds}))}",
        f"on {listed_values(row.hardware for row in rows)}" if any(row.hardware for row in rows) else "",
        f"commit {commits(rows)}" if any(row.commit for row in rows) else "",
    ]
    commands = {row.command for row in rows if row.command}
    by = (
        "; the commands are in the last table" if len(commands) > 1 else "".join(f": {command}" for command in commands)
    )
    told = "; ".join(filter(None, parts)) + by + "."
    return told[0].upper() + told[1:]


def listed_values(values: Iterable[str | None]) -> str:
    """Each once, in the order met."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def commits(rows: list[Row]) -> str:
    """Each once and short, with the + of one that had changes."""
    every = [commit for row in rows for commit in (row.commit or "").split("; ")]
    return listed_values(commit.rstrip("+")[:12] + "+" * commit.endswith("+") for commit in every)


def beaten(found: Compared) -> list[str]:
    """A sentence for the systems that a control beats, by the best control on the domains in question."""
    by: dict[str, list[str]] = {}
    for system in found.systems:
        lost: dict[str, list[str]] = {}
        for domain in found.domains:
            if found.row(system, domain, "ratio") and (control := better_control(found, system, domain)):
                lost.setdefault(control, []).append(domain)
        for control, domains in lost.items():
            by.setdefault(f"{control}, on {listed(domains)}", []).append(system)
    return [f"Beaten by a control: {control}, beats {listed(systems)}." for control, systems in by.items()]


def better_control(found: Compared, system: str, domain: str) -> str | None:
    """The best of the controls, where its ratio is below the system's by more than both spreads over seeds."""
    theirs = {control: found.value(control, domain, "ratio") or math.inf for control in found.controls}
    best = min(theirs, key=theirs.__getitem__, default=None)
    if best is None:
        return None
    own, spreads = (
        found.value(system, domain, "ratio"),
        [found.spread(each, domain, "ratio") for each in (best, system)],
    )
    return best if theirs[best] + sum(spread or 0 for spread in spreads) < (own or math.inf) else None
