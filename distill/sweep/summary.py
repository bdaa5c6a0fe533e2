"""A sweep in a table: what became of every job, what it is worth, which nothing beats, and how to go on."""

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report.figures import standalone
from ..report.pages import Page
from ..report.quantities import duration, number, size, with_error
from ..report.section import Section, Table
from ..whole import whole
from .jobs import Sweep
from .picture import picture
from .result import Result, best, front, results

NAME = "summary"


@dataclass(frozen=True)
class Summary:
    """found: of every job. best: by the metric `by`, on one domain or on the mean of all."""

    sweep: Sweep
    found: list[Result]
    best: Result | None
    by: str
    domain: str | None

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(domain for each in self.found for domain in each.values("ratio")))

    def table(self) -> Table:
        heads = [f"{head}, {domain}" for head in ("Ratio", "KL") for domain in self.domains]
        ahead = front(self.found)
        rows = [
            [
                str(each.job.number),
                each.told,
                each.state.name,
                *(with_error(each.values("ratio").get(domain), errors(each).get(domain)) for domain in self.domains),
                *(number(each.values("kl").get(domain)) for domain in self.domains),
                size(each.value("state")),
                duration(each.value("seconds")),
                "yes" if each in ahead else "",
            ]
            for each in self.found
        ]
        columns = ["Job", "What differs", "It is", *heads, "State", "Time", "Beaten by none"]
        return Table("Jobs", columns, rows, labels=3)

    def told(self) -> list[str]:
        """How many are finished, why others are not, and which is best."""
        counts = Counter(each.state.name for each in self.found)
        lines = [f"{len(self.found)} jobs: {', '.join(f'{count} {name}' for name, count in counts.items())}"]
        lines += [f"{each.job} {each.state}" for each in self.found if each.state.reason]
        if self.best is not None:
            on = f" on {self.domain}" if self.domain else ""
            lines.append(
                f"best by {self.by}{on}: {self.best.job}, {self.best.told}: {self.best.value(self.by, self.domain):.4g}"
            )
        return lines

    def commands(self) -> list[str]:
        """What serves the best, and what goes on with those that are not finished."""
        left = any(each.state.name != "finished" for each in self.found)
        serve = [f"serve it: {command}" for command in serving(self.best)] if self.best else []
        return serve + [f"go on: {self.sweep.command}"] * left

    def content(self) -> dict[str, Any]:
        return {
            "command": self.sweep.command,
            "by": self.by,
            "domain": self.domain,
            "best": self.best.job.number if self.best else None,
            "front": [each.job.number for each in front(self.found)],
            "jobs": [entry(each) for each in self.found],
        }


def entry(each: Result) -> dict[str, Any]:
    return {
        "job": each.job.number,
        "directory": each.job.directory.name,
        "overrides": each.job.overrides,
        "state": each.state.name,
        "reason": each.state.reason or None,
        "ratio": each.values("ratio"),
        "ratio_error": errors(each),
        "kl": each.values("kl"),
        "state_bytes": each.value("state"),
        "seconds": each.value("seconds"),
    }


def errors(each: Result) -> dict[str, float | None]:
    return (each.headline or {}).get("ratio_error") or {}


def serving(each: Result) -> list[str]:
    """Only decoders answer."""
    student = each.job.directory / "student"
    writes = each.headline is not None and each.headline.get("task") == "causal_lm" and student.exists()
    return [shlex.join(["python", "-m", "distill.serve", str(student)])] if writes else []


def summarise(sweep: Sweep, by: str, domain: str | None) -> Summary:
    """Writes summary.json, summary.md and, where there is something to draw, summary.svg into the sweep's folder.

    UserError where no finished job has the metric.
    """
    found = results(sweep)
    summary = Summary(sweep, found, best(found, by, domain), by, domain)
    drawn = picture(found)
    count, *lines = summary.told()
    section = Section(
        title="Jobs",
        intro="Ratio is student over teacher perplexity, ± one standard error over held-out blocks; KL is from the "
        "teacher, in nats per token; state is what decoding one sequence keeps.",
        data={},
        verdict=count,
        tables=[summary.table()],
        figures=[[drawn]] if drawn else [],
        notes=lines,
    )
    page = Page(f"Sweep {sweep.folder.name}", [], {NAME: section}, lambda *_: f"{NAME}.svg")
    texts = {"json": json.dumps(summary.content(), indent=1, ensure_ascii=False) + "\n", "md": page.markdown()}
    for command in summary.commands():
        # As it is typed, where the rest of the page is not.
        said, _, typed = command.partition(": ")
        texts["md"] += f"\n{said.capitalize()}:\n\n```sh\n{typed}\n```\n"
    texts |= {"svg": standalone(drawn.svg)} if drawn else {}
    for ending, text in texts.items():
        write(sweep.folder / f"{NAME}.{ending}", text)
    return summary


def write(path: Path, text: str) -> None:
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")
