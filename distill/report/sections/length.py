"""How good the student is at each length, and whether it finds again what it has read."""

from typing import Any

import numpy as np

from ..plots import Line, curves
from ..quantities import count, number, share, with_error
from ..run import Run
from ..section import Fact, Figure, Section, Table
from ..verdict import each, listed

WHO = ("teacher", "student")
RECALLS = {
    "copy": "copy: random tokens, and the same again so much later",
    "passkey": "passkey: a random key behind a mark, so much held-out text, and the mark again",
}
SAID = {"text": "How the text goes on", "teacher": "What the teacher samples", "student": "What the student samples"}
#: What a teacher that finds less than this has no recall to be kept.
FINDS = 0.05
#: Nats a token that a teacher gains at least where there is something to be forgotten.
GAINS = 0.25
#: A student wanders off whose samples cost its teacher so many nats a token more than its own.
WANDERING = 0.5


def section(run: Run) -> Section:
    found = run.measurement("length")
    return Section(
        title="Length",
        intro=f"The context elsewhere in this report is {found['context']:,} tokens. Perplexity at each context is of "
        "the same text, read in stretches of that many tokens; that by position is at the longest, by the tokens "
        "before a target. Recall is the share of tokens that are found as the likeliest, and what their log p gains "
        "over that after other tokens, of which nothing can be recalled; its tasks are made of the model's own "
        "vocabulary, and nobody was trained on them. ± is one standard error over texts. Generation goes on "
        "from held-out text, half a context of it: greedily until student and teacher part, and by sampling at "
        "temperature 1, of which the teacher says how likely it is. Where the student's samples are much less likely "
        "than the teacher's own, it wanders off.",
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
        notes=notes(found),
    )


def notes(found: dict[str, Any]) -> list[str]:
    told = []
    if found["contexts"][-1] == found["context"]:
        told.append("Not read at longer contexts: there are no more positions, or no more text.")
    if blind := [name for name, recall in found["recall"].items() if recall["distance"] and not finds(recall)]:
        told.append(
            f"The teacher itself finds next to nothing of a {' or a '.join(blind)}: compare what they gain instead."
        )
    return told


def verdict(found: dict[str, Any]) -> str:
    """At the longest context, over the farthest distance, and by itself."""
    longest, told = found["contexts"][-1], found["generation"]
    ratios = {domain: ratio for domain, by in found["ppl"].items() if (ratio := over(by[str(longest)])) is not None}
    near = each(ratios, of=" the teacher's") if ratios else ""
    said = [f"Read {longest:,} tokens at a time, perplexity is {near}."] if ratios else []
    said += [
        sentence
        for name, recall in found["recall"].items()
        if (sentence := recalled(name, recall) if finds(recall) else forgotten(name, recall))
    ]
    alike = [f"{number(by['until'])} of {by['tokens']} tokens on {domain}" for domain, by in told.items()]
    said.append(f"Going on greedily, it says the same as its teacher for {listed(alike)}.")
    lost = [domain for domain, by in told.items() if wanders(by["nats"], by["error"])]
    return " ".join([*said, f"Sampling on {listed(lost)}, it wanders off."] if lost else said)


def over(by: dict[str, float | None]) -> float | None:
    student, teacher = by["student"], by["teacher"]
    return None if student is None or not teacher else student / teacher


def ratio(by: dict[str, float | None]) -> str:
    value, error = over(by), by["error"]
    return with_error(value, None if value is None or error is None else value * error)


def finds(recall: dict[str, Any]) -> bool:
    """Whether the teacher does: a model that was not trained to may not, and then its student need not."""
    return max(recall["teacher"]["found"], default=0) >= FINDS


def recalled(name: str, recall: dict[str, Any]) -> str:
    """At the farthest distance over which the teacher still finds half as much as it does at its best."""
    teachers, students = (recall[who]["found"] for who in WHO)
    far = max(place for place, value in enumerate(teachers) if value >= max(teachers) / 2)
    student, teacher = share(students[far]), share(teachers[far])
    return f"Of a {name} over {recall['distance'][far]:,} tokens it finds {student}, the teacher {teacher}."


def forgotten(name: str, recall: dict[str, Any]) -> str:
    """The nearest distance at which the teacher still gains something and the student not half as much."""
    gains = zip(recall["distance"], *(recall[who]["gain"] for who in WHO), recall["teacher"]["error"], strict=True)
    for distance, teacher, student, error in gains:
        known = teacher is not None and teacher >= max(GAINS, 2 * (error or 0))
        if known and (student is None or student < teacher / 2):
            told = f"gains {number(student)} nats a token, and the teacher {number(teacher)}"
            return f"From a {name} read {distance:,} tokens before it {told}."
    return ""


def wanders(nats: dict[str, float | None], error: float | None) -> bool:
    """Whether that is more than what prompts differ by."""
    student, teacher = nats["student"], nats["teacher"]
    return student is not None and teacher is not None and student - teacher > max(WANDERING, 2 * (error or 0))


def context_table(found: dict[str, Any]) -> Table:
    rows = [
        [domain, f"{context:,}", *(number(by[str(context)][who]) for who in WHO), ratio(by[str(context)])]
        for domain, by in found["ppl"].items()
        for context in found["contexts"]
    ]
    columns = ["Domain", "Context", "Teacher", "Student", "Ratio"]
    return Table("Perplexity by context, of the same targets", columns, rows, labels=2)


def recall_tables(found: dict[str, Any]) -> list[Table]:
    rows = [
        [
            name,
            f"{distance:,}",
            *(share(recall[who]["found"][place]) for who in WHO),
            *(with_error(recall[who]["gain"][place], recall[who]["error"][place]) for who in WHO),
        ]
        for name, recall in found["recall"].items()
        for place, distance in enumerate(recall["distance"])
    ]
    columns = ["Task", "Distance", "Teacher finds", "Student finds", "Teacher gains, nats", "Student gains, nats"]
    caption = "Tokens found again, and how much likelier they are than where there is nothing to be recalled"
    return [Table(caption, columns, rows, labels=2)] if rows else []


def generation_table(found: dict[str, Any]) -> Table:
    rows = [
        [
            domain,
            f"{number(told['until'])} of {told['tokens']}",
            share(told["identical"]),
            *(number(told["nats"][who]) for who in SAID),
            number(told["error"]),
        ]
        for domain, told in found["generation"].items()
    ]
    heads = list(SAID.values())
    caption = "Going on by itself; nats per token under the teacher"
    columns = ["Domain", "Alike, tokens", "Alike to the end", *heads, "± of student over teacher"]
    return Table(caption, columns, rows)


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
    return [recall_figure(name, recall) for name, recall in found["recall"].items() if recall["distance"]]


def recall_figure(name: str, recall: dict[str, Any]) -> Figure:
    """What is found; or what is gained, where a teacher finds too little."""
    measure, unit = ("found", "share found") if finds(recall) else ("gain", "nats gained")
    distance = np.array(recall["distance"], dtype=float)
    lines = [Line(who, distance, np.array(recall[who][measure], dtype=float)) for who in WHO]
    write = share if finds(recall) else number
    told = "; ".join(f"{who} {', '.join(map(write, recall[who][measure]))}" for who in WHO)
    alt = f"Recall, {RECALLS[name]}; {unit} at {', '.join(map(count, recall['distance']))} tokens: {told}."
    drawing = curves(
        lines, "distance in tokens", unit, alt, doubling=True, scale="shares" if finds(recall) else "linear"
    )
    return Figure(f"recall-{name}", f"Recall, {RECALLS[name]}: {unit}.", alt, drawing)
