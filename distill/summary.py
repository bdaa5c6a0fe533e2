"""What a run prints when it is done: the headline in a few lines, and where the rest is."""

import json
from pathlib import Path

from .report.quantities import size
from .rundir import RunDirectory

#: The columns of the table, and the measurements they show.
COLUMNS = {"teacher": "teacher_ppl", "swapped": "swapped_ppl", "stage 1": "stage1_ppl", "student": "student_ppl"}


def summary(run: RunDirectory, student: Path) -> str:
    """Perplexities, KL and scores by domain from measurements/headline.json, then the paths of student and report."""
    headline = json.loads((run.path / "measurements" / "headline.json").read_text(encoding="utf-8"))
    columns = {name: key for name, key in COLUMNS.items() if headline[key]}
    lines = [f"{'perplexity':12}" + "".join(f"{name:>10}" for name in columns) + f"     student / teacher{'KL':>9}"]
    for domain, ratio in headline["ratio"].items():
        values = "".join(cell((headline[key] or {}).get(domain), 10, 2) for key in columns.values())
        error = headline["ratio_error"][domain]
        quotient = f"{cell(ratio, 10, 3)} ± {cell(error, 0, 3)}"
        lines.append(f"{domain:12}{values}{quotient:22}{cell(headline['kl'][domain], 9, 3)}")
    if headline["scores"]:
        lines += ["", f"{'':22}" + "".join(f"{name:>10}" for name in ("teacher", "student", "recovery"))]
    for domain, scores in (headline["scores"] or {}).items():
        for name, each in scores.items():
            shares = (each["teacher"], each["student"], each["recovery"])
            read = f"   of {headline['evaluation_tokens'][domain]:,} texts" if name == "accuracy" else ""
            read += f", {each['constant']:.1%} by one answer to all" if read else ""
            lines.append(f"{domain:12}{name:10}" + "".join(percent(value) for value in shares) + read)
    stages = [
        f"{name} {seen:,} tokens in {run.seconds.get(name, 0):.0f} s"
        for name, seen in headline["tokens"].items()
        if seen
    ]
    peaks = headline["peak_bytes"].values()
    held = f", at most {size(max(peaks))} of GPU memory" if peaks else ""
    lines += ["", "; ".join([*stages, f"{sum(run.seconds.values()):.0f} s in all{held}"])]
    # Of the stages that made the student, and not of those that were only measured.
    ways = [
        f"{stage}: {what} by {' and '.join(each)}"
        for stage in headline["tokens"]
        for what, each in run.ways.get(stage, {}).items()
    ]
    lines += ["; ".join(ways)] if ways else []
    lines += [f"student  {student}", f"report   {run.path / 'report' / 'report.html'}"]
    return "\n".join(lines)


def cell(value: float | None, width: int, digits: int) -> str:
    text = "–" if value is None else format(value, f".{digits}f")
    # So that there is room before it.
    return f"{text if len(text) < width or not width else format(value, '.2e'):>{width}}"


def percent(value: float | None) -> str:
    return f"{'–' if value is None else format(value, '.1%'):>10}"
