"""Whether kernels fitted on one domain work, frozen, on another, and what learning their frequencies brings."""

from itertools import product
from typing import Any

import numpy as np

from ..plots import heat_map
from ..quantities import count, number, share, with_error
from ..run import Run
from ..section import Fact, Figure, Section, Table
from ..transferred import BySeed, difference, gap, mean, pairs, retention, spread, where_fitted
from ..verdict import listed

#: What is measured of a kernel on a text, and how it is called; a kernel is better where it is less.
MEASURES = {"kl": "KL", "output_error": "output error", "ppl": "perplexity, swapped in"}
FRESH = "untrained"
#: Pairs of domains that the eye should meet first.
SHOWN = 6


def section(run: Run) -> Section:
    found = run.measurement("transfer")
    judge = "kl" if found["comparable"] else "output_error"
    retained = {name: retention(found, name) for name in MEASURES}
    gaps = {kind: gap(found, kind, judge) for kind in ("learned", "fixed") if found[kind]}
    shown = [name for name in MEASURES if any(None not in each for each in found["fresh"][name].values())]
    return Section(
        title="Transfer",
        intro=f"Kernels are fitted on each domain alone and on the mixture of all, each for {found['steps']:,} steps, "
        f"{count(found['tokens'])} tokens, of stage 1 and from the same draw, and held to the held-out text of every "
        "domain. Untrained: as drawn. Retention is what a kernel keeps on another domain of what fitting there gains: "
        "(untrained − frozen) / (untrained − fitted there), 100 % where it is as good as one fitted there, 0 % where "
        "it is as bad as none; of perplexity it is that of the logarithm. Fixed frequencies stay as drawn, while all "
        f"else is fitted. {seeds_told(len(found['seeds']))}",
        data=found | {"retention": retained, "gap": gaps},
        verdict=verdict(retained[judge], gaps, judge, len(found["seeds"])),
        numbers=[
            Fact(f"{source} → {domain}", share(mean(by_seed)), f"of the gain in {MEASURES[judge]} is kept")
            for (source, domain), by_seed in list(pairs(retained[judge]).items())[:SHOWN]
        ],
        tables=[
            *(matrix_table(found, name) for name in shown),
            *(retention_table(retained[name], found, name) for name in shown),
            gap_table(gaps, judge),
        ],
        figures=[[matrix_figure(found, judge), *retention_figures(retained[judge], found, judge)]],
        notes=[]
        if found["fixed"]
        else ["No fixed frequencies beside them: this map learns none, or keeps them fixed."],
    )


def seeds_told(seeds: int) -> str:
    if seeds == 1:
        return "One seed, so that there is no spread."
    return f"Mean of {seeds} seeds; ± is the sample standard deviation over them."


def verdict(retained: dict[str, dict[str, BySeed]], gaps: dict[str, Any], judge: str, seeds: int) -> str:
    """What a kernel keeps elsewhere; what learning its frequencies gains there and, by several seeds, in the gap."""
    each = {pair: kept for pair, by_seed in pairs(retained).items() if (kept := mean(by_seed)) is not None}
    said = []
    if each:
        told = [f"{share(each[pair])} ({pair[0]} on {pair[1]})" for pair in sorted(each, key=each.__getitem__)]
        span = f"between {told[0]} and {told[-1]}" if len(told) > 3 else listed(told)
        said.append(f"Frozen on another domain, kernels keep {span} of what fitting there gains in {MEASURES[judge]}.")
    if "fixed" in gaps:
        learned, fixed = (where_fitted(gaps[kind], "test") for kind in ("learned", "fixed"))
        compared = (
            f"Where they were fitted, {MEASURES[judge]} on held-out text is {number(learned)} with learned frequencies "
            f"and {number(fixed)} with fixed ones"
        )
        if seeds > 1:
            learned, fixed = (where_fitted(gaps[kind], "train") for kind in ("learned", "fixed"))
            compared += f", and on the text trained on {number(learned)} and {number(fixed)}"
        said.append(f"{compared}.")
    return " ".join(said)


def cell(by_seed: BySeed | None) -> str:
    return with_error(mean(by_seed or []), spread(by_seed or []))


def percent(by_seed: BySeed | None) -> str:
    deviation = spread(by_seed or [])
    return share(mean(by_seed or [])) + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def matrix_table(found: dict[str, Any], name: str) -> Table:
    rows = [[FRESH, "", *(cell(found["fresh"][name].get(domain)) for domain in found["domains"])]]
    for kind, source in product(("learned", "fixed"), found["sources"]):
        if found[kind]:
            rows.append([source, kind, *(cell(found[kind][name][source].get(domain)) for domain in found["domains"])])
    columns = ["Fitted on", "Frequencies", *found["domains"]]
    return Table(f"On held-out text of each domain: {MEASURES[name]}", columns, rows, labels=2)


def fitted_on(found: dict[str, Any]) -> list[str]:
    """The domains that kernels were fitted on, without those only measured."""
    return [domain for domain in found["domains"] if domain in found["sources"]]


def retention_table(retained: dict[str, dict[str, BySeed]], found: dict[str, Any], name: str) -> Table:
    domains = fitted_on(found)
    rows = [[source, *(percent(retained[source].get(domain)) for domain in domains)] for source in found["sources"]]
    caption = f"Retention: what is kept on each domain of what fitting there gains in {MEASURES[name]}"
    return Table(caption, ["Fitted on", *domains], rows)


def gap_table(gaps: dict[str, Any], judge: str) -> Table:
    rows = [
        [source, kind, cell(each["train"]), cell(each["test"]), cell(difference(each))]
        for kind, by_source in gaps.items()
        for source, each in by_source.items()
    ]
    columns = ["Fitted on", "Frequencies", "Text trained on", "Held-out text", "Gap"]
    return Table(f"Learned, or learned by heart? On the same domain: {MEASURES[judge]}", columns, rows, labels=2)


def matrix_figure(found: dict[str, Any], name: str) -> Figure:
    rows = {FRESH: found["fresh"][name], **found["learned"][name]}
    matrix = [[mean(by_domain[domain]) for domain in found["domains"]] for by_domain in rows.values()]
    title = f"On held-out text, by what kernels were fitted on: {MEASURES[name]}"
    unit = f"{MEASURES[name]}{', nats' if name == 'kl' else ''}"
    return drawn(matrix, (list(rows), found["domains"]), title, unit, f"transfer-{name}")


def retention_figures(retained: dict[str, dict[str, BySeed]], found: dict[str, Any], name: str) -> list[Figure]:
    domains = fitted_on(found)
    matrix = [[mean(retained[source].get(domain, [])) for domain in domains] for source in found["sources"]]
    title = f"Retention of the gain in {MEASURES[name]}; 1 is as good as fitted there"
    names = (found["sources"], domains)
    return [drawn(matrix, names, title, "retention", f"retention-{name}")] if pairs(retained) else []


def drawn(
    matrix: list[list[float | None]], names: tuple[list[str], list[str]], title: str, unit: str, name: str
) -> Figure:
    told = [
        f"{row}: {', '.join(f'{column} {number(value)}' for column, value in zip(names[1], line, strict=True))}"
        for row, line in zip(names[0], matrix, strict=True)
    ]
    alt = f"{title}. {'; '.join(told)}."
    values = np.array(matrix, dtype=float)
    top = float(np.nanmax(values, initial=0))
    drawing = heat_map(values, top, ("fitted on", "held-out text of"), unit, alt, names)
    return Figure(name, f"{title}. Colour grows with the square root.", alt, drawing)
