"""What a comparison says in sentences."""

import math
from collections.abc import Iterable
from statistics import mean

from ..quantities import count, share, size
from ..verdict import each, listed
from .compared import Compared
from .rows import Row

STAGES = {"allocation_tokens": "sharing out features", "attention_tokens": "stage 1", "logits_tokens": "stage 2"}
#: Up to how many times a system's size a control may have to count as no larger: what a few features less make.
SAME_SIZE = 1.02


def verdict(found: Compared) -> str:
    """The best system and the best control, where there are such: by right answers, or else by perplexity."""
    return kept_accuracy(found) if found.scored else nearest(found)


def kept_accuracy(found: Compared) -> str:
    """What the best system and the best control keep of the teacher's accuracy, where an answer is right or not."""

    def kept(mixer: str) -> dict[str, float]:
        values = {domain: found.value(mixer, domain, "accuracy_recovery") for domain in found.domains}
        return {domain: value for domain, value in values.items() if value is not None}

    def told(mixers: list[str], of: str = "") -> str:
        scored = {mixer: mean(kept(mixer).values()) for mixer in mixers if kept(mixer)}
        best = max(scored, key=scored.__getitem__, default=None)
        shares = [f"{share(value)} on {domain}" for domain, value in kept(best).items()] if best else []
        return f"{best} keeps {listed(shares)}{of}" if best else ""

    of = " of the teacher's accuracy"
    systems = told(found.systems, of)
    controls = told(found.controls, "" if systems else of)
    return f"{'; '.join(filter(None, [systems, controls]))}." if systems or controls else ""


def nearest(found: Compared) -> str:
    """The system with the lowest ratio, and the control with the lowest."""
    systems = [mixer for mixer in found.systems if ratios(found, mixer)]
    controls = [mixer for mixer in found.controls if ratios(found, mixer)]
    told = []
    if systems:
        state = found.memory(systems[0])
        near = each(ratios(found, systems[0]), of=" the teacher's")
        kept = f", with a state of {size(state)}" if state else ""
        told.append(f"Of all that are no controls {systems[0]} comes nearest: {near}{kept}.")
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
    """A sentence for the systems that a control beats, by the best such control on the domains in question."""
    by: dict[str, list[str]] = {}
    for system in found.systems:
        lost: dict[str, list[str]] = {}
        for domain in found.domains:
            if found.row(system, domain, "ratio") and (control := better_control(found, system, domain)):
                lost.setdefault(control, []).append(domain)
        for control, domains in lost.items():
            by.setdefault(f"{control}, on {listed(domains)}", []).append(system)
    return [
        f"Beaten by a control that is no larger: {control}, beats {listed(names)}." for control, names in by.items()
    ]


def better_control(found: Compared, system: str, domain: str) -> str | None:
    """The best of the controls, not larger than the system, that falls short by less than both spreads allow."""
    size = found.extent(system) or math.inf
    controls = [each for each in found.controls if (found.extent(each) or 0) <= SAME_SIZE * size]
    better = [each for each in controls if clearly_better(found, each, system, domain)]
    return min(better, key=lambda control: found.shortfall(control, domain) or (math.inf, 0), default=None)


def clearly_better(found: Compared, control: str, system: str, domain: str) -> bool:
    """A system without a value is beaten by any."""
    theirs, own = (found.shortfall(each, domain) for each in (control, system))
    if theirs is None or own is None:
        return theirs is not None
    return own[0] - theirs[0] > own[1] + theirs[1]
