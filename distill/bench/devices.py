"""Stages 1 and 2 on one device and on several: tokens a second, and whether the losses are the same.

Of a model that was not trained and of random tokens, since speed depends on neither. `python -m distill.bench.devices
JOB` is one such run, in each of its processes.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..launch import launch, launched
from ..names import file_name
from ..report.compare.case import Case, parse
from ..report.compare.rows import Row
from ..report.compare.tables import goal_table
from ..report.plots import Line, curves
from ..report.quantities import number
from ..report.section import Figure, Section, Table

TITLE = "Several devices"
#: How much faster than one two devices are to be, each with as many rows as one has; and how near the losses are to be
#: where they share its rows.
FASTER, ALIKE = ">= 1.8", "<= 0.001"
#: Until here kernels are chosen and steps captured: the share of the steps that is not timed.
WARM = 1 / 3
STAGES = ("attention", "logits")


@dataclass
class Job:
    """One run. batch: rows of a step, of all devices together. graphs: as GPUs launch their steps unless told."""

    devices: int
    batch: int
    graphs: bool
    strategy: str
    mixer: str
    layers: int
    width: int
    heads: int
    words: int
    context: int
    steps: int
    precision: str
    accelerator: str
    run_dir: str = ""

    def __str__(self) -> str:
        many = f"{self.devices} devices by {self.strategy}" if self.devices > 1 else "1 device"
        return f"{many}, batch {self.batch}{' as CUDA graphs' if self.graphs else ''}"


def jobs(asked: Job) -> Iterator[Job]:
    """One device as it is at its fastest and kernel by kernel, several with as many rows each, and sharing its rows."""
    one, several = replace(asked, devices=1), replace(asked, graphs=asked.graphs and asked.strategy != "fsdp")
    if asked.graphs:
        yield one
    yield replace(one, graphs=False)
    yield replace(several, batch=asked.batch * asked.devices)
    yield several


def measure(asked: Job) -> list[tuple[Job, list[dict[str, Any]]]]:
    """What each of the runs has logged."""
    found = []
    with TemporaryDirectory(prefix="distill-") as folder:
        for place, job in enumerate(jobs(asked)):
            job = replace(job, run_dir=f"{folder}/{place}")
            code = launch(job.devices, ["-m", "distill.bench.devices", json.dumps(asdict(job))])
            if code:
                raise RuntimeError(f"{job} has failed with exit code {code}, see above")
            lines = (Path(job.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found.append((job, [json.loads(line) for line in lines]))
    return found


def speed(logged: list[dict[str, Any]], stage: str) -> float:
    """Tokens a second, of all devices together: the median from one logged step to the next.

    A checkpoint takes as long on several, and comes more often in so few steps than in a run.
    """
    lines = [line for line in logged if line["stage"] == stage]
    lines = lines[int(WARM * len(lines)) :]
    tokens, seconds = (np.diff([line[key] for line in lines]) for key in ("tokens", "seconds"))
    return float(np.median(tokens / seconds))


def rows(
    found: list[tuple[Job, list[dict[str, Any]]]], mixer: str, command: str, hardware: str, commit: str | None
) -> list[Row]:
    """Of every run its tokens a second and its losses; how much faster several are, and how far off their losses."""
    made: list[Row] = []
    *ones, (each_full, full), (shared, parts) = found
    teacher = f"gpt2-{shared.layers}x{shared.width}"

    def row(stage: str, of: str, metric: str, value: float, unit: str, goal: str | None = None) -> None:
        case = str(Case(mixer, teacher, f"{stage}, {of}, {hardware}"))
        made.append(Row(case, metric, value, None, [0], unit, goal, command, hardware, commit))

    for stage in STAGES:
        for job, logged in found:
            row(stage, str(job), "tokens_per_second", speed(logged, stage), "tokens per second")
            for line in logged:
                if line["stage"] == stage:
                    row(stage, f"{job}, step {line['step']}", "loss", line["loss"], "nats")
        for job, logged in ones:
            # The first of them is how a run on one device is.
            goal = FASTER if job is ones[0][0] and each_full.devices == 2 and each_full.strategy == "ddp" else None
            times = speed(full, stage) / speed(logged, stage)
            row(stage, f"{each_full} over {job}", "speedup", times, "tokens per second over those of one", goal)
        one, several = (np.array(losses(logged, stage)) for logged in (ones[-1][1], parts))
        apart = float(abs(several - one).max() / (one.max() or 1.0))
        row(stage, f"{shared} beside {ones[-1][0]}", "loss_gap", apart, "share of the largest loss", ALIKE)
    return made


def losses(logged: list[dict[str, Any]], stage: str) -> list[float]:
    return [line["loss"] for line in logged if line["stage"] == stage]


def section(name: str, there: list[Row]) -> Section:
    """Goals, tokens a second, and the curves of every stage over one another."""
    told = [(parse(row.case).domain.removesuffix(f", {row.hardware}"), row) for row in there]
    speeds = [[of, row.metric, number(row.value)] for of, row in told if row.metric != "loss"]
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for where, row in told:
        if row.metric == "loss" and row.value is not None:
            stage, rest = where.split(", ", 1)
            of, _, step = rest.rpartition(", step ")
            lines.setdefault(stage, {}).setdefault(of, []).append((int(step), row.value))
    figures = []
    for stage, runs in lines.items():
        drawn = [Line(of, *np.array(sorted(points), dtype=float).T) for of, points in runs.items()]
        alt = f"Loss of {stage} by step, {name}: {'; '.join(runs)}"
        figures.append(Figure(file_name(f"{stage}-{name}"), alt, alt, curves(drawn, "steps", "loss", alt)))
    intro = f"Random weights and tokens: only speed and sameness are meant. {there[0].command}"
    tables = [goal_table(there), Table("Tokens a second, and quotients", ["Of", "Metric", "Value"], speeds, labels=2)]
    return Section(name, intro, {}, tables=tables, figures=[figures])


def run(job: Job) -> None:
    """The two stages, as a run has them, between no measurements."""
    import hydra
    import torch
    from datasets import Dataset
    from lightning import seed_everything
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

    from .. import ranks
    from ..__main__ import register_recipes
    from ..capture import CAPTURE
    from ..config import read
    from ..data import Corpus
    from ..folders import folder
    from ..rundir import RunDirectory
    from ..stages.attention import AttentionStage
    from ..stages.fit import fit
    from ..stages.logits import LogitsStage
    from ..student import build_student
    from ..teacher import freeze

    if launched():
        ranks.join()
    register_recipes()
    typed = [f"mixer={job.mixer}", f"data.context={job.context}", f"run_dir={job.run_dir}", f"cuda_graphs={job.graphs}"]
    typed += [
        f"stages.{stage}.{key}" for stage in STAGES for key in (f"max_steps={job.steps}", f"batch_size={job.batch}")
    ]
    typed += [f"trainer.{key}={getattr(job, key)}" for key in ("devices", "strategy", "precision", "accelerator")]
    with hydra.initialize_config_dir(str(folder("conf").resolve()), version_base="1.3"):
        config = read(hydra.compose("config", typed))
    if launched():
        config = ranks.together(config)
    seed_everything(0, verbose=False)
    sizes: dict[str, Any] = {
        "n_layer": job.layers,
        "n_head": job.heads,
        "n_embd": job.width,
        "n_positions": job.context,
    }
    # Weights so large that attention is far from uniform, and there is something to match.
    told = GPT2Config(**sizes, vocab_size=job.words, bos_token_id=0, eos_token_id=0, initializer_range=0.05)
    model = AutoModelForCausalLM.from_config(told, attn_implementation=CAPTURE)
    teacher = freeze("gpt2", model, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel())), torch.float32)
    ids = torch.randint(job.words, (8 * job.batch, job.context))
    made = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    corpus = Corpus({}, {"random": made}, {"random": made}, {"random": 1.0}, seed=0, workers=0)
    student = build_student(teacher, config.mixer)
    directory = RunDirectory(config)
    directory.create()
    wanted = config.stages
    fit(
        AttentionStage(teacher, student.mixers, wanted.attention),
        "attention",
        wanted.attention,
        corpus,
        config,
        directory,
    )
    fit(LogitsStage(teacher, student, wanted.logits), "logits", wanted.logits, corpus, config, directory)
    ranks.part()


if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])))
