"""How closely each head of the student follows its teacher's attention."""

import numpy as np

from ..attention_maps import map_figures
from ..plots import heat_map
from ..quantities import count, number, share
from ..run import ArtefactError, Run
from ..section import Fact, Figure, Section, Table
from ..spectra import spectrum_figures, spectrum_tables

TITLES = {"kl": "KL", "output_error": "output error"}
UNITS = {"kl": "nats", "output_error": "share"}
#: How many heads the table holds.
WORST = 10

#: {domain: {measure: (layers, heads)}}, NaN where there is no value.
Heads = dict[str, dict[str, np.ndarray]]


def section(run: Run) -> Section:
    if run.setting("mixer.match_maps") is False:
        raise ArtefactError(
            "with mixer.match_maps=false nothing is fitted to attention maps, and logits alone say how good it is"
        )
    found = run.json("measurements/fidelity.json")
    heads = {
        domain: {name: np.array(rows, dtype=float) for name, rows in kinds.items()}
        for domain, kinds in found["domains"].items()
    }
    order = ranking(heads, found["comparable"])
    summary = {domain: {name: summarised(kinds[name]) for name in TITLES} for domain, kinds in heads.items()}
    figures, notes = matrix_figures(heads), cautions(heads, found["comparable"])
    width = found.get("window", 0)
    if width and defined(heads, "gate"):
        notes += [beyond_window(domain, kinds, width) for domain, kinds in heads.items()]
    try:
        figures += map_figures(run, found)
    except ArtefactError as error:
        notes.append(f"No attention maps: {error}.")
    return Section(
        title="Fidelity",
        intro=f"Each head of the student, {as_it_is(run)}, against the teacher's, both given the teacher's own "
        f"queries and keys, over "
        f"{count(found['tokens'])} tokens. KL runs from the teacher's attention to the student's: 0 when they agree. "
        "Output error is the squared distance between what the two heads pass on, as a share of the teacher's square. "
        "Layers and heads count from 0. Frequencies are the directions that features look along: their length before "
        "and after stage 1, the cosine of each with what it was, and how many directions a head's point to.",
        data=found | {"summary": summary},
        numbers=[domain_number(domain, kinds, order) for domain, kinds in summary.items()],
        tables=[worst_heads(heads, order, width), *spectrum_tables(found.get("spectra"))],
        figures=[*figures, *spectrum_figures(found.get("spectra"))],
        notes=notes,
    )


def as_it_is(run: Run) -> str:
    return "as it was exported" if run.setting("goal") == "evaluate" else "as stage 1 left it"


def ranking(heads: Heads, comparable: bool) -> str:
    """The measure that says which head is worst: KL wherever it means something."""
    return "kl" if comparable and defined(heads, "kl") else "output_error"


def defined(heads: Heads, name: str) -> bool:
    return any(np.isfinite(kinds[name]).any() for kinds in heads.values())


def summarised(values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {"mean": None, "median": None, "worst": None}
    return {"mean": float(values.mean()), "median": float(np.median(values)), "worst": float(values.max())}


def domain_number(domain: str, summary: dict[str, dict[str, float | None]], order: str) -> Fact:
    values = summary[order]
    detail = f"{UNITS[order]}, mean over heads · median {number(values['median'])} · worst {number(values['worst'])}"
    return Fact(f"{domain}, {TITLES[order]}", number(values["mean"]), detail)


def cautions(heads: Heads, comparable: bool) -> list[str]:
    notes = [f"No {TITLES[name]}: this mixer has none." for name in TITLES if not defined(heads, name)]
    if not comparable:
        notes.append(
            "The KL here is not comparable with other mixers': this map's weights can be negative, and it was taken "
            "on weights clipped at zero. Compare by output error, which orders the heads below."
        )
    return notes


def beyond_window(domain: str, kinds: dict[str, np.ndarray], width: int) -> str:
    """What the linear part of a hybrid is there for, and whether it does it."""
    teacher, student, gate = (kinds[name] for name in ("far_teacher", "far_student", "gate"))
    return (
        f"{domain}: beyond the window of {width} tokens goes {share(mean(teacher))} of the teacher's attention and "
        f"{share(mean(student))} of the student's; the gate raises the linear part by {number(mean(gate))} nats "
        f"(heads: {number(known(np.nanmin(gate)))} to {number(known(np.nanmax(gate)))})."
    )


def mean(values: np.ndarray) -> float | None:
    return known(np.nanmean(values)) if np.isfinite(values).any() else None


def worst_heads(heads: Heads, order: str, width: int) -> Table:
    every = [(domain, *place) for domain, kinds in heads.items() for place in np.ndindex(kinds[order].shape)]
    every.sort(key=lambda head: -np.nan_to_num(heads[head[0]][order][head[1:]], nan=-1))
    rows = []
    for domain, layer, head in every[:WORST]:
        at = {name: known(values[layer, head]) for name, values in heads[domain].items()}
        row = [number(at[name]) for name in ("kl", "output_error", "entropy_teacher", "entropy_student")]
        row += [share(at["negative_share"]), number(at["smallest_denominator"])]
        row += [share(at["far_teacher"]), share(at["far_student"]), number(at["gate"])] if width else []
        rows.append([domain, str(layer), str(head), *row])
    columns = ["Domain", "Layer", "Head", "KL", "Output error", "Teacher's entropy", "Student's entropy"]
    count = f"{len(every) // len(heads)} heads" + (f" on {len(heads)} domains" if len(heads) > 1 else "")
    caption = f"The {len(rows)} worst of {count} by {TITLES[order]}; KL and entropies in nats"
    columns += ["Negative weights", "Smallest denominator"]
    columns += ["Teacher beyond window", "Student beyond window", "Gate"] if width else []
    return Table(caption, columns, rows, labels=3)


def known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def matrix_figures(heads: Heads) -> list[list[Figure]]:
    """A row for each measure, a figure for each domain; a row shares one scale of colours."""
    rows = []
    for name in TITLES:
        if defined(heads, name):
            top = max(np.nanmax(kinds[name], initial=0) for kinds in heads.values())
            rows.append([matrix_figure(domain, name, kinds[name], top) for domain, kinds in heads.items()])
    return rows


def matrix_figure(domain: str, name: str, values: np.ndarray, top: float) -> Figure:
    layer, head = np.unravel_index(np.argmax(np.nan_to_num(values, nan=-1)), values.shape)
    title = f"{domain}: {TITLES[name]} of each head"
    alt = f"{title}. The largest, {number(known(values[layer, head]))}, is layer {layer}, head {head}."
    caption = f"{title}; colour grows with its square root."
    drawing = heat_map(values, top, ("layer", "head"), f"{TITLES[name]}, {UNITS[name]}", alt)
    return Figure(f"{name}-{domain}", caption, alt, drawing)
