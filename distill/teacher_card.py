"""What a trained teacher's README.md says."""

import json
from typing import Any

import torch

from .config import Config
from .data import Corpus
from .measure.perplexity import Reading
from .measure.scores import score
from .rundir import RunDirectory
from .stages.fit import device_of
from .task import TASKS, Task

CARD = """# {name}

A softmax {kind} to distil from, trained from {start} by `python -m distill recipe={recipe}`.

- Architecture: {model_type}, {parameters:.2f} M parameters, bfloat16.{architecture}
- Tokenizer: {tokenizer}.
- Text: {text}
- Training: {steps} steps of {batch} {blocks} {context} tokens ({tokens:.1f} M tokens), AdamW, learning rate {lr:g},
  {warmup:.0%} warm-up, then straight down to 0, weight decay {decay:g}, seed {seed}, {seconds:.0f} s on {device}.

| held-out text | {predicted}s | perplexity at context {context} |{heads}
|---|---|---|{lines}
{rows}

Perplexity is exp of the mean cross-entropy of the {predicted}s. It is of this model's own vocabulary
and cannot be compared with that of another tokenizer.
"""


def lines(readings: dict[str, Reading], corpus: Corpus, task: Task) -> list[str]:
    """A line for each domain: perplexity and, where a text has a right answer, scores."""
    found = scores(readings, corpus, task)
    return [
        f"{name:12} perplexity {reading.perplexity:.2f}"
        + "".join(f", {key} {each:.1%}" for key, each in found[name].items())
        for name, reading in readings.items()
    ]


def scores(readings: dict[str, Reading], corpus: Corpus, task: Task) -> dict[str, dict[str, float]]:
    """By domain, of what has a right answer for each text; nothing of a language model."""
    if not task.scored:
        return {name: {} for name in readings}
    return {name: score(each, len(corpus.classes or []), corpus.positive) for name, each in readings.items()}


def card(
    model: Any, readings: dict[str, Reading], tokens: int, corpus: Corpus, config: Config, run: RunDirectory
) -> str:
    wanted, device = config.stages.pretrain, device_of(config)
    start, task = config.teacher.path, TASKS[config.task]
    right = scores(readings, corpus, task)
    rows = [
        f"| {name} | {reading.tokens} | {reading.perplexity:.2f} |"
        + "".join(f" {each:.1%} |" for each in right[name].values())
        for name, reading in readings.items()
    ]
    heads = list(next(iter(right.values())))
    made = f"byte-level BPE, {model.config.vocab_size} entries, trained on the same text"
    return CARD.format(
        name=config.recipe,
        kind=task.kind,
        predicted=task.predicted,
        recipe=config.recipe,
        model_type=model.config.model_type,
        parameters=model.num_parameters() / 1e6,
        start=f"`{start}`" if start else "scratch",
        architecture="" if start else f" {json.dumps(config.teacher.architecture)}",
        tokenizer=f"that of `{start}`" if start else made,
        heads="".join(f" {name} |" for name in heads),
        lines="---|" * len(heads),
        text="; ".join(f"{name} (`{domain.path}`)" for name, domain in corpus.domains.items()),
        steps=wanted.max_steps,
        batch=wanted.batch_size,
        blocks="texts of at most" if corpus.classes else "pairs of texts of at most" if task.paired else "blocks of",
        context=config.data.context,
        tokens=tokens / 1e6,
        lr=wanted.learning_rate,
        warmup=wanted.warmup,
        decay=wanted.weight_decay,
        seed=config.seed,
        seconds=run.seconds["pretrain"],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU",
        rows="\n".join(rows),
    )
