"""How good the student is at each length, and whether it finds again what it has read."""

from typing import Any

import numpy as np

from ..plots import Line, curves
from ..quantities import count, number, share, times
from ..run import Run
from ..section import Fact, Figure, Section, Table
from ..verdict import each, listed

WHO = ("teacher", "student")
RECALLS = {
    "copy": "copy: random tokens, and the same again so much later",
    "passkey": "passkey: a random key behind a mark, so much held-out text, and the mark again",
}
SAID = {"text": "How the text goes on", "teacher": "What the teacher samples", "student": "What the student samples"}
#: A student wanders off whose samples cost its teacher so many nats a token more than its own.
WANDERING = 0.5


def section(run: Run) -> Section:
    found = run.measurement("length")
    beyond = found["contexts"][-1] > found["context"]
    return Section(
        title="Length",
        intro=f"Trained at a context of {found['context']:,} tokens. Perplexity at each context is of the same text, "
        "read in stretches of that many tokens; that by position is at the longest, by the tokens before a target. "
        "Recall is the share of tokens that are found as the likeliest; its tasks are made of the model's own "
        "vocabulary, and nobody was trained on them. Generation goes on from held-out text, half a context of it: "
        "greedily until student and teacher part, and by sampling at temperature 1, of which the teacher says how "
        "likely it is. Where the student's samples are much less likely than the teacher's own, it wanders off.",
        data=found,
        verdict=verdict(found),
        numbers=[
            Fact(
                f"{domain}, alike for",
                f"{number(told['until'])} tokens",
                f"of {told['tokens']}, greedily; mean of {told['prompts']} prompts",
            )
            for domain, told in found["generation"].items()
        ],
        tables=[context_table(found), *recall_tables(found), generation_table(found)],
        figures=[[position_figure(found, domain) for domain in found["positions"]], recall_figures(found)],
        notes=[]
        if beyond
        else ["Not read beyond the context of training: there are no more positions, or no more text."],
    )


def verdict(found: dict[str, Any]) -> str:
    """At the longest context, over the farthest distance, and by itself."""
    longest, told = found["contexts"][-1], found["generation"]
    ratios = {domain: ratio for domain, by in found["ppl"].items() if (ratio := over(by[str(longest)])) is not None}
    near = each(ratios, of=" the teacher's") if ratios else ""
    said = [f"Read {longest:,} tokens at a time, perplexity is {near}."] if ratios else []
    said += [recalled(name, recall) for name, recall in found["recall"].items() if any(recall["teacher"])]
    alike = [f"{number(by['until'])} of {by['tokens']} tokens on {domain}" for domain, by in told.items()]
    said.append(f"Going on greedily, it says the same as its teacher for {listed(alike)}.")
    lost = [domain for domain, by in told.items() if wanders(by["nats"])]
    return " ".join([*said, f"Sampling on {listed(lost)}, it wanders off."] if lost else said)


def over(by: dict[str, float | None]) -> float | None:
    student, teacher = by["student"], by["teacher"]
    return None if student is None or not teacher else student / teacher


def recalled(name: str, recall: dict[str, Any]) -> str:
    """At the farthest distance over which the teacher still finds half as much as it does at its best."""
    best = max(filter(None, recall["teacher"]))
    far = max(place for place, value in enumerate(recall["teacher"]) if value and value >= best / 2)
    student, teacher = share(recall["student"][far]), share(recall["teacher"][far])
    return f"Of a {name} over {recall['distance'][far]:,} tokens it finds {student}, the teacher {teacher}."


def wanders(nats: dict[str, float | None]) -> bool:
    student, teacher = nats["student"], nats["teacher"]
    return student is not None and teacher is not None and student - teacher > WANDERING


def context_table(found: dict[str, Any]) -> Table:
    rows = [
        [domain, f"{context:,}", *(number(by[str(context)][who]) for who in WHO), times(over(by[str(context)]))]
        for domain, by in found["ppl"].items()
        for context in found["contexts"]
    ]
    columns = ["Domain", "Context", "Teacher", "Student", "Ratio"]
    return Table("Perplexity by context, of the same targets", columns, rows, labels=2)


def recall_tables(found: dict[str, Any]) -> list[Table]:
    rows = [
        [name, f"{distance:,}", *(share(recall[who][place]) for who in WHO)]
        for name, recall in found["recall"].items()
        for place, distance in enumerate(recall["distance"])
    ]
    return [Table("Tokens found again", ["Task", "Distance", "Teacher", "Student"], rows, labels=2)] if rows else []


def generation_table(found: dict[str, Any]) -> Table:
    rows = [
        [
            domain,
            f"{number(told['until'])} of {told['tokens']}",
            share(told["identical"]),
            *(number(told["nats"][who]) for who in SAID),
        ]
        for domain, told in found["generation"].items()
    ]
    heads = [f"{head}, nats" for head in SAID.values()]
    caption = "Going on by itself; nats per token under the teacher"
    return Table(caption, ["Domain", "Alike, tokens", "Alike to the end", *heads], rows)


def position_figure(found: dict[str, Any], domain: str) -> Figure:
    told, longest = found["positions"][domain], found["contexts"][-1]
    ends = [*told["from"][1:], longest]
    middle = np.sqrt(np.array(told["from"], dtype=float) * np.array(ends, dtype=float))
    ppl = {who: np.exp(np.array(told[who], dtype=float)) for who in WHO}
    title = f"{domain}: perplexity by position, at a context of {longest:,} tokens"
    spans = [f"{who} {plain(values[0])} → {plain(values[-1])}" for who, values in ppl.items()]
    alt = f"{title}. From the first tokens to the last: {'; '.join(spans)}."
    drawing = curves([Line(who, middle, ppl[who]) for who in WHO], "tokens before it", "perplexity", alt, doubling=True)
    return Figure(f"positions-{domain}", f"{title}; a point for each doubling.", alt, drawing)


def plain(value: float) -> str:
    return number(float(value) if np.isfinite(value) else None)


def recall_figures(found: dict[str, Any]) -> list[Figure]:
    figures = []
    for name, recall in found["recall"].items():
        if recall["distance"]:
            distance = np.array(recall["distance"], dtype=float)
            lines = [Line(who, distance, np.array(recall[who], dtype=float)) for who in WHO]
            told = "; ".join(f"{who} {', '.join(map(share, recall[who]))}" for who in WHO)
            alt = f"Recall, {RECALLS[name]}. At {', '.join(map(count, recall['distance']))} tokens: {told}."
            drawing = curves(lines, "distance in tokens", "share found", alt, doubling=True, shares=True)
            figures.append(Figure(f"recall-{name}", f"Recall, {RECALLS[name]}.", alt, drawing))
    return figures
