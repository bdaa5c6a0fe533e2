"""What the student's attention, and each part of it, is good for."""

import math
from typing import Any

import numpy as np

from ..plots import heat_map
from ..quantities import number, share, times, with_error
from ..run import Run
from ..section import Fact, Figure, Section, Table
from ..verdict import each, listed

#: The controls, in the order of what they leave.
NAMES = {
    "zero": "no attention",
    "uniform": "uniform",
    "key_weight": "key weight only",
    "window": "window only",
    "linear": "linear only",
}
#: A part of a hybrid, and the control that lacks it.
LACKS = {"linear": "window", "window": "linear"}
#: What loses less than this many nats, two standard errors added, does nothing.
IDLE = 0.01
WHOLE = "all"


def section(run: Run) -> Section:
    found = run.measurement("contribution")
    nats, errors, domains = found["nats"], found["error"], list(found["student"])
    # A run of before has none.
    right = found.get("accuracy") or {}
    whole = {name: nats[WHOLE][name] for name in NAMES if name in nats[WHOLE]}
    layers = [layer for layer in nats if layer != WHOLE]
    return Section(
        title="Contribution",
        intro="What is lost when something less stands in the place of the student's attention, of the finished "
        "student as it is: in all layers at once, and in one layer while all others stay. No attention: its output is "
        "nought. Uniform: the mean of all values seen. Key weight only: attention that ignores the query. Window only "
        "and linear only: one part of a hybrid without the other. In nats per target, and as a multiple of the "
        "student's perplexity; nothing is trained anew, so that a student made without it could be better than this.",
        data=found,
        verdict=" ".join([*found_said(right), verdict(nats, errors, domains)]),
        numbers=[Fact(NAMES[name], times(factor(by[domains[0]])), told(by)) for name, by in whole.items()],
        tables=[whole_table(whole, errors[WHOLE], domains, right), layer_table(nats, layers, domains)],
        figures=[[layer_figure(nats, layers, domain) for domain in domains]],
    )


def factor(nats: float | None) -> float | None:
    return None if nats is None else math.exp(min(nats, 700))


def told(nats: dict[str, float | None]) -> str:
    """What the first number is of, and the other domains."""
    (first, _), *rest = nats.items()
    return " · ".join([f"perplexity on {first}", *(f"{times(factor(value))} on {domain}" for domain, value in rest)])


def verdict(nats: dict[str, Any], errors: dict[str, Any], domains: list[str]) -> str:
    """What there is without attention, what either part of a hybrid adds, and which layers could do without."""
    lost = {domain: factor(value) for domain, value in nats[WHOLE]["zero"].items() if value is not None}
    said = [f"Without attention perplexity would be {each(lost, of=' what it is')}."] if lost else []  # type: ignore[arg-type]
    for part, control in LACKS.items():
        if control in nats[WHOLE]:
            said.append(part_said(part, nats[WHOLE][control], errors[WHOLE][control]))
    spared = [layer for layer in nats if layer != WHOLE and all(idle(nats, errors, layer, each) for each in domains)]
    if spared:
        said.append(
            f"Layer{'s' if len(spared) > 1 else ''} {listed(spared)} could do without: next to nothing is lost there."
        )
    return " ".join(said)


def found_said(right: dict[str, dict[str, float | None]]) -> list[str]:
    """Of a task with right answers, how many more there are with attention than without."""
    if not right:
        return []
    pairs = [
        f"{share(right['zero'][domain])} against {share(own)} on {domain}" for domain, own in right["student"].items()
    ]
    return [f"Without attention its accuracy would be {listed(pairs)}."]


def part_said(part: str, nats: dict[str, float | None], errors: dict[str, float | None]) -> str:
    known = {domain: value for domain, value in nats.items() if value is not None}
    nothing = [domain for domain, value in known.items() if least(value, errors[domain])]
    if len(nothing) == len(known):
        return f"The {part} part does nothing: without it next to nothing is lost."
    within = [domain for domain, value in known.items() if value <= 2 * (errors[domain] or 0)]
    unclear = [domain for domain in within if domain not in nothing]
    gained = listed([f"{times(factor(value))} on {domain}" for domain, value in known.items()])
    none = f", where it does nothing on {listed(nothing)}" if nothing else ""
    none += f"; on {listed(unclear)} that cannot be told from nothing" if unclear else ""
    return f"Without the {part} part it would be {gained}{none}."


def least(lost: float, error: float | None) -> bool:
    """Whether next to nothing is lost, and that is known: of a single block it is not."""
    return error is not None and lost + 2 * error <= IDLE


def idle(nats: dict[str, Any], errors: dict[str, Any], layer: str, domain: str) -> bool:
    lost, error = nats[layer]["zero"][domain], errors[layer]["zero"][domain]
    return lost is not None and least(lost, error)


def whole_table(
    whole: dict[str, Any], errors: dict[str, Any], domains: list[str], right: dict[str, dict[str, float | None]]
) -> Table:
    rows = [
        [
            NAMES[name],
            *(
                cell
                for domain in domains
                for cell in (
                    with_error(by[domain], errors[name][domain]),
                    times(factor(by[domain])),
                    *([share(right[name][domain])] if right else []),
                )
            ),
        ]
        for name, by in whole.items()
    ]
    told = ["nats", "perplexity", *(["accuracy"] if right else [])]
    columns = ["In all layers", *(f"{domain}, {each}" for domain in domains for each in told)]
    return Table(
        "What the whole student loses, in nats and as a multiple of its perplexity; ± one standard error", columns, rows
    )


def layer_table(nats: dict[str, Any], layers: list[str], domains: list[str]) -> Table:
    names = present(nats, layers)
    rows = [
        [domain, layer, *(number((nats[layer].get(name) or {}).get(domain)) for name in names)]
        for domain in domains
        for layer in layers
    ]
    columns = ["Domain", "Layer", *(NAMES[name].capitalize() for name in names)]
    return Table("What is lost in one layer alone, in nats", columns, rows, labels=2)


def present(nats: dict[str, Any], layers: list[str]) -> list[str]:
    return [name for name in NAMES if any(name in nats[layer] for layer in layers)]


def layer_figure(nats: dict[str, Any], layers: list[str], domain: str) -> Figure:
    names = present(nats, layers)
    values = np.array([[(nats[layer].get(name) or {}).get(domain) for name in names] for layer in layers], dtype=float)
    most = layers[int(np.nanargmax(values[:, 0]))] if np.isfinite(values[:, 0]).any() else "–"
    title = f"{domain}: nats lost with less than attention in one layer"
    alt = f"{title}. Without attention, layer {most} loses most."
    drawing = heat_map(
        values,
        float(np.nanmax(values, initial=0)),
        ("layer", ""),
        "nats per target",
        alt,
        (layers, [NAMES[name] for name in names]),
    )
    return Figure(f"contribution-{domain}", f"{title}; colour grows with the square root.", alt, drawing)
