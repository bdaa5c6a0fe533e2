"""The decision on one screen: how good the student is, what it cost to make and when its state is smaller."""

from typing import Any

from ..losses import loss_figures
from ..plots import staircase
from ..quantities import DASH, count, duration, number, share, size, times, with_error
from ..run import ArtefactError, Run
from ..section import Fact, Figure, Section, Table
from ..verdict import KL_TO_TEACHER, verdict

#: The perplexities on the way from teacher to student, in order.
STEPS = {
    "teacher_ppl": "teacher",
    "swapped_ppl": "swapped in",
    "stage1_ppl": "after stage 1",
    "matched_ppl": "after stage 2",
    "student_ppl": "student",
}
#: Whose scores there are of a classifier.
SCORED = {
    "teacher": "Teacher",
    "matched": "After stage 2",
    "student": "Student",
    "recovery": "Recovery",
    "teacher_tuned": "Teacher tuned",
}
STAGES = {
    "allocation": "features shared out",
    "attention": "stage 1, attention maps",
    "logits": "stage 2, logits",
    "finetune": "fine-tuning",
    "measure": "measuring",
    "teacher_tuned": "the teacher, tuned",
}


def section(run: Run) -> Section:
    data = complete(run.json("measurements/headline.json"))
    figures, notes = [steps_figure(data)], list[str]()
    tables = [*score_tables(data), perplexity_table(data), stage_table(data)]
    try:
        tables += allocation_tables(run, data)
    except ArtefactError as error:
        notes.append(f"No features by layer: {error}.")
    if run.setting("goal") != "evaluate":
        try:
            figures += loss_figures(run)
        except ArtefactError as error:
            notes.append(f"No loss curves: {error}.")
    if not data["teacher_tuned_ppl"]:
        notes.append(f"No control, the teacher trained on the same tokens: {why_untuned(run)}.")
    return Section(
        title="Headline",
        intro="Perplexity on held-out text, an encoder's over the masked tokens, a classifier's over the labels, that "
        "of an embedding model over the texts of a batch, of which one belongs with each: the same text and context "
        "for teacher and student. The ratio is student over teacher, so 1.00× loses nothing; ± is one standard error "
        "over the blocks read. Swapped in: with the "
        f"mixers as initialised, before any training.{KL_TO_TEACHER if data['kl'] else ''}",
        data=data,
        verdict=verdict(data),
        numbers=[domain_number(data, domain) for domain in data["teacher_ppl"]],
        facts=facts(data),
        tables=tables,
        figures=[figures],
        notes=notes,
    )


def complete(found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, null where a domain was not, and the two quotients that follow from it."""
    domains = list(found["teacher_ppl"])
    data = dict(found)
    for name in (*STEPS, "ratio", "ratio_error", "agreement", "evaluation_tokens"):
        data[name] = {domain: (found.get(name) or {}).get(domain) for domain in domains}
    data["peak_bytes"] = found.get("peak_bytes") or {}
    data["teacher_tuned_ppl"] = tuned = found.get("teacher_tuned_ppl")
    data |= {name: found.get(name) for name in ("kl", "teacher_tuned_kl", "scores")}
    data["student_over_tuned"] = {d: over(data["student_ppl"][d], (tuned or {}).get(d)) for d in domains}
    state, saved = data["state_bytes"], data["cache_bytes_per_token"] - data["student_cache_bytes_per_token"]
    data["state_smaller_from_tokens"] = state // saved + 1 if saved else None
    return data


def steps(data: dict[str, Any]) -> dict[str, str]:
    """Those of STEPS that this run took: not all fine-tune, and a student that is evaluated took none."""
    always = ("teacher_ppl", "student_ppl")
    return {
        name: step
        for name, step in STEPS.items()
        if name in always or any(value is not None for value in data[name].values())
    }


def over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def domain_number(data: dict[str, Any], domain: str) -> Fact:
    error = data["ratio_error"][domain]
    parts = [
        "" if error is None else f"± {error:.3f}",
        f"perplexity {number(data['teacher_ppl'][domain])} → {number(data['student_ppl'][domain])}",
        f"KL to teacher {number(data['kl'].get(domain))}" if data["kl"] else "",
        f"same first choice for {share(data['agreement'][domain])} of {'texts' if data['scores'] else 'tokens'}",
    ]
    if data["scores"]:
        right = data["scores"][domain]["accuracy"]
        parts = [f"accuracy {share(right['teacher'])} → {share(right['student'])}", *parts[1:]]
        if near := data["scores"][domain].get("cosine"):
            parts.insert(1, f"cosine to teacher {share(near['student'])}")
        return Fact(domain, f"{share(right['recovery'])} kept", " · ".join(filter(None, parts)))
    return Fact(domain, times(data["ratio"][domain]), " · ".join(filter(None, parts)))


def score_tables(data: dict[str, Any]) -> list[Table]:
    """How often the model is right, where a text has a right answer, and how much of its teacher's score that is."""
    known = {key for scores in (data["scores"] or {}).values() for each in scores.values() for key in each}
    columns = {key: head for key, head in SCORED.items() if key in known}
    rows = [
        [domain, name, *(share(each.get(key)) for key in columns)]
        for domain, scores in (data["scores"] or {}).items()
        for name, each in scores.items()
    ]
    heads = ["Domain", "Score", *columns.values()]
    return [Table("Right answers, and what is kept of the teacher's", heads, rows, labels=2)] if rows else []


def facts(data: dict[str, Any]) -> list[Fact]:
    cache, tokens, parameters = data["cache_bytes_per_token"], data["state_smaller_from_tokens"], data["parameters"]
    trained = total(data["tokens"])
    decoding = [
        Fact("State", size(data["state_bytes"]), "one sequence, any length" + kept_cache(data)),
        Fact(
            "Teacher's cache",
            size(cache * data["context"]),
            f"at {data['context']:,} tokens; {size(cache)} each, as precise as its checkpoint",
        ),
        Fact("State is smaller from", f"{tokens:,} tokens" if tokens else DASH, "of context"),
    ]
    # An encoder keeps neither.
    return [
        *(decoding if data["state_bytes"] is not None or cache else []),
        *([Fact("Trained on", f"{count(trained)} tokens", "all stages of this run")] if trained else []),
        Fact("Took", duration(total(data["seconds"])), "from data to this headline" + held(data["peak_bytes"])),
        Fact(
            "Parameters",
            count(parameters["student"]),
            f"teacher {count(parameters['teacher'])}; mixers {count(parameters['mixers'])}",
        ),
    ]


def held(peaks: dict[str, int]) -> str:
    """How much of a GPU's memory a run needs, where it had one."""
    return f"; at most {size(max(peaks.values()))} of GPU memory" if peaks else ""


def kept_cache(data: dict[str, Any]) -> str:
    grows = data["student_cache_bytes_per_token"]
    return f"; and {size(grows)} a token for the layers kept exact" if grows else ""


def perplexity_table(data: dict[str, Any]) -> Table:
    tuned, kl, tuned_kl = data["teacher_tuned_ppl"], data["kl"], data["teacher_tuned_kl"]
    columns = ["Domain", *map(str.capitalize, steps(data).values()), "Ratio", "Same first choice"]
    columns += ["KL to teacher"] if kl else []
    columns += ["Teacher tuned", "Student / tuned"] if tuned else []
    columns += ["Tuned, KL to teacher"] if tuned_kl else []
    rows = []
    for domain in data["teacher_ppl"]:
        row = [domain, *(number(data[step][domain]) for step in steps(data))]
        row += [with_error(data["ratio"][domain], data["ratio_error"][domain]), share(data["agreement"][domain])]
        row += [number(kl.get(domain))] if kl else []
        row += [number(tuned.get(domain)), times(data["student_over_tuned"][domain])] if tuned else []
        row += [number(tuned_kl.get(domain))] if tuned_kl else []
        rows.append([*row, count(data["evaluation_tokens"][domain])])
    read = "Texts read" if data["scores"] else "Tokens read"
    return Table(f"Perplexity at {data['context']:,} tokens of context", [*columns, read], rows)


def stage_table(data: dict[str, Any]) -> Table:
    tokens, seconds, peaks = data["tokens"], data["seconds"], data["peak_bytes"]
    columns = ["Stage", "Tokens", "Time", "Tokens per second"] + (["GPU memory at its peak"] if peaks else [])
    rows = [
        [
            STAGES.get(stage, stage),
            count(tokens.get(stage)),
            duration(seconds.get(stage)),
            count(over(tokens.get(stage), seconds.get(stage))),
            *([size(peaks.get(stage))] if peaks else []),
        ]
        for stage in dict.fromkeys([*seconds, *tokens])
        if seconds.get(stage) or tokens.get(stage)
    ]
    return Table("What the stages took", columns, rows)


def allocation_tables(run: Run, data: dict[str, Any]) -> list[Table]:
    """How many features each layer got, and why, of a run that measured it."""
    if not data["tokens"].get("allocation"):
        return []
    found = run.json("measurements/allocation.json")
    rows = [[layer, number(kl), count(found["features"].get(layer))] for layer, kl in found["kl"].items()]
    caption = "Features by layer: more where attention that ignores the query leaves more KL, in nats"
    return [Table(caption, ["Layer", "Left without the query", "Features"], rows)]


def steps_figure(data: dict[str, Any]) -> Figure:
    values = {
        domain: [over(data[step][domain], teacher) for step in steps(data)]
        for domain, teacher in data["teacher_ppl"].items()
    }
    told = "; ".join(f"{domain} {', '.join(map(times, heights))}" for domain, heights in values.items())
    alt = f"Perplexity over the teacher's, {' → '.join(steps(data).values())}: {told}."
    caption = "From teacher to student: perplexity as a multiple of the teacher's, on a logarithmic scale."
    return Figure(
        "staircase", caption, alt, staircase(list(steps(data).values()), values, "perplexity / teacher's", alt)
    )


def total(by_stage: dict[str, float | None]) -> float:
    return sum(value or 0 for value in by_stage.values())


def why_untuned(run: Run) -> str:
    if run.setting("measure.teacher_tuned") is False:
        return "measure.teacher_tuned was off"
    return "measurements/headline.json holds none"
