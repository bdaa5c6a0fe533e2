"""A campaign: runs are killed at some moment, whichever, resumed, and held against one that nothing befell.

`python -m tests.pipeline.campaign short|default` kills as often as is wanted and writes what came of it.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tqdm import tqdm

from distill.bench.table import save, writable
from distill.checkpoint import git_commit
from distill.measure.origin import hardware
from distill.report.compare.case import Case
from distill.report.compare.rows import Row
from distill.report.compare.tables import goal_table
from distill.report.quantities import number
from distill.report.section import Section, Table
from distill.whole import sha256, voucher

TITLE = "Runs that are killed"
#: All that `make run` does, in half a minute.
SHORT = [
    *("data.context=128", "data.validation_blocks=4", "mixer.window=16"),
    *("stages.allocation.max_steps=2", "stages.attention.max_steps=8", "stages.logits.max_steps=8"),
    *("stages.attention.batch_size=2", "stages.logits.batch_size=2"),
    *("measure.batch_size=4", "measure.fidelity_blocks=1", "report.sections=[headline,fidelity]"),
]


class Kind(NamedTuple):
    """What is typed for a run, and how often it is killed: each time another one, or the same again and again."""

    arguments: list[str]
    times: int
    in_one: bool


KINDS = {"short": Kind(SHORT, 30, False), "default": Kind([], 3, True)}
#: What has to come out alike, to the last bit.
WEIGHTS = ("student/model.safetensors", "kernels/mixture.safetensors")


@dataclass(frozen=True)
class Killed:
    """What came of a run that was killed: in which part, None where it ended by itself; files that were not what they
    are called, then or later; and the seconds that it took longer than one that was not."""

    during: str | None
    finished: bool
    same: bool
    half_written: list[str]
    seconds: float


def campaign(arguments: list[str], times: int, folder: Path, seed: int = 0, in_one: bool = False) -> list[Killed]:
    """Kills a run each time in another part of the time that it takes, at a random moment of it; or in_one, which each
    time has gone on for a random part of half that time."""
    drawn = random.Random(seed)
    _, taken, _ = run(arguments, folder / "whole")
    if not (folder / "whole" / "report").exists():
        raise RuntimeError((folder / "whole.log").read_text()[-2000:])
    if in_one:
        moments = [drawn.random() * taken / 2 for _ in range(times)]
        return killed_again(arguments, folder / "killed", folder / "whole", moments, taken)
    moments = [(part + drawn.random()) / times * taken for part in range(times)]
    return [
        killed(arguments, folder / f"killed-{index}", folder / "whole", moment, taken)
        for index, moment in enumerate(tqdm(moments, "campaign", unit="kill"))
    ]


def killed(arguments: list[str], path: Path, whole: Path, moment: float, taken: float) -> Killed:
    code, before, _ = run(arguments, path, moment)
    while code == 0:
        # The machine was faster this time.
        shutil.rmtree(path)
        moment *= 0.9
        code, before, _ = run(arguments, path, moment)
    during, found = part(path) if code == -signal.SIGKILL else None, half_written(path, whole)
    _, again, start = run(arguments, path)
    lost = before + start + again - taken
    return Killed(during, *came_to(path, whole), found + half_written(path, whole), lost)


def killed_again(arguments: list[str], path: Path, whole: Path, moments: list[float], taken: float) -> list[Killed]:
    """What came of one run that was killed so many seconds after each time that it had gone on."""
    found, seconds = [], -taken
    for moment in tqdm(moments, "campaign", unit="kill"):
        code, lasted, start = run(arguments, path, moment)
        found.append((part(path) if code == -signal.SIGKILL else None, half_written(path, whole)))
        seconds += lasted + (start if len(found) > 1 else 0)
    _, lasted, start = run(arguments, path)
    after, lost = half_written(path, whole), (seconds + lasted + start) / len(moments)
    return [Killed(during, *came_to(path, whole), broken + after, lost) for during, broken in found]


def came_to(path: Path, whole: Path) -> tuple[bool, bool]:
    """Whether a run is finished, and with the same weights."""
    finished = (path / "report").exists()
    return finished, finished and all((path / file).read_bytes() == (whole / file).read_bytes() for file in WEIGHTS)


def run(arguments: list[str], path: Path, moment: float | None = None) -> tuple[int, float, float]:
    """`python -m distill` in a directory, killed so many seconds after it began there, if it still runs; returns its
    exit code, the seconds that it took from then on, and those before."""
    command = [sys.executable, "-m", "distill", *arguments, f"run_dir={path}", "resume=true"]
    start = time.monotonic()
    with path.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None and not (path / "config.yaml").exists():
                time.sleep(0.01)
            began = time.monotonic()
            process.wait(moment)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            code = process.wait()
    return code, time.monotonic() - began, began - start


def part(run: Path) -> str:
    """That in which a run ended, as what it left tells."""
    if (run / "report").exists():
        return "at its end"
    if (run / "student").exists():
        return "in the report"
    finished = {each.stem for each in (run / "progress").glob("*.safetensors")}
    if "logits" in finished:
        return "in last readings or export"
    log = run / "metrics.jsonl"
    # What follows the last line break is a line that was being written.
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    begun = [json.loads(line)["stage"] for line in lines]
    if begun and begun[-1] not in finished:
        return f"in stage {begun[-1]}"
    return "between stages" if begun or finished else "in data or first readings"


def half_written(run: Path, whole: Path) -> list[str]:
    """Files that are not what their names say, and those that a folder which is whole or absent lacks."""
    found = []
    for file in (each for each in sorted(run.rglob("*")) if each.is_file()):
        name = str(file.relative_to(run))
        if ".unfinished" not in name and (read := READ.get(file.suffix)) is not None:
            try:
                read(file)
            except Exception as problem:
                found.append(f"{name}: {problem}")
    for folder in ("student", "report"):
        if (run / folder).exists():
            found += [f"{folder}/{name} is missing" for name in names(whole / folder) - names(run / folder)]
    return found


def names(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


def vouched(file: Path) -> None:
    """Of a checkpoint: what is vouched for is what is there."""
    if voucher(file).exists() and voucher(file).read_text() != sha256(file):
        raise ValueError("not what is vouched for")


def ends(file: Path) -> None:
    if not file.read_text().rstrip().endswith("</html>"):
        raise ValueError("it breaks off")


#: What reads a file to its end, by how its name ends. A log grows line by line.
READ: dict[str, Callable[[Path], Any]] = {
    ".json": lambda file: json.loads(file.read_text()),
    # Its last key is there.
    ".yaml": lambda file: OmegaConf.to_container(OmegaConf.load(file))["logger"],
    ".safetensors": load_file,
    ".ckpt": vouched,
    ".svg": ElementTree.parse,
    ".html": ends,
}


def rows(kind: str, found: list[Killed], command: str) -> list[Row]:
    where, times = hardware(torch.device("cpu")), len(found)
    case = str(Case("exponential-window F=128", "pocket", f"{kind} run, {where}"))

    def row(metric: str, value: float, unit: str, goal: str | None = None, spread: float | None = None) -> Row:
        return Row(case, metric, value, spread, [0], unit, goal, command, where, git_commit())

    lost = [each.seconds for each in found]
    parts = Counter(each.during for each in found if each.during)
    return [
        row("killed", sum(parts.values()), "runs", f">= {KINDS[kind].times}"),
        row("finished", sum(each.finished for each in found), "runs", f">= {times}"),
        row("same_weights", sum(each.same for each in found), "runs, to the last bit", f">= {times}"),
        row("half_written", sum(len(each.half_written) for each in found), "files", "<= 0"),
        row("lost_seconds", statistics.mean(lost), "seconds", None, statistics.pstdev(lost)),
        *(row(f"killed {part}", count, "runs") for part, count in parts.items()),
    ]


def section(name: str, there: list[Row]) -> Section:
    intro = (
        "A short run is killed by SIGKILL, each time a new one in another part of the time that it takes; the default "
        "one again and again. It goes on by the same command with resume=true. Lost is what a kill cost in time, "
        "beside a run that nothing befell. "
    )
    commands = "; ".join(dict.fromkeys(row.command or "" for row in there))
    lines = [[row.case, row.metric, number(row.value), row.unit or ""] for row in there if not row.goal]
    tables = [goal_table(there), Table("What else was found", ["Case", "", "Value", ""], lines, labels=2)]
    return Section(title=name, intro=intro + commands, data={}, tables=tables)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.pipeline.campaign", description=TITLE)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--times", type=int, help="how often a run is killed, at least twice (short 30, default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reliability"), help="OUT.json, OUT.md (%(default)s)")
    given = parser.parse_args()
    writable(given.out)
    arguments, times, in_one = KINDS[given.kind]
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(arguments, given.times or times, Path(folder), given.seed, in_one)
    for each in found:
        print(each)
    command = " ".join(["python", "-m", "tests.pipeline.campaign", *sys.argv[1:]])
    print(save(given.out, rows(given.kind, found, command), TITLE, section))


if __name__ == "__main__":
    main()
