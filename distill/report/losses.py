"""Loss curves from metrics.jsonl, one figure for each stage that trained."""

from typing import Any

import numpy as np

from .plots import Line, curves
from .quantities import count, number
from .run import Run
from .section import Figure

TITLES = {
    "attention": "Stage 1, attention maps",
    "logits": "Stage 2, logits",
    "finetune": "Fine-tuning, the text's own targets",
    "teacher_tuned": "Control, the teacher trained on",
}
#: Of the values of `stages.attention.loss` the one that has a unit.
MAP_LOSS = {"kl": "KL of attention, nats per query"}
#: A figure shows no more points than this; each is then a mean over neighbouring steps.
POINTS = 250


def loss_figures(run: Run) -> list[Figure]:
    """ArtefactError: there is no metrics.jsonl."""
    units = {
        "attention": MAP_LOSS.get(run.setting("stages.attention.loss"), "loss"),
        "logits": "loss, nats per token",
        "finetune": "cross-entropy, nats",
        "teacher_tuned": "cross-entropy, nats per token",
    }
    logged = [step for step in run.metrics() if step.get("loss") is not None and "tokens" in step]
    stages = {stage: [step for step in logged if step.get("stage") == stage] for stage in TITLES}
    return [_figure(stage, steps, units[stage]) for stage, steps in stages.items() if steps]


def _figure(stage: str, steps: list[dict[str, Any]], unit: str) -> Figure:
    tokens, losses = _column(steps, "tokens"), _column(steps, "loss")
    layers = _layers([step for step in steps if step.get("layers")])
    title = TITLES[stage]
    first, last = steps[0], steps[-1]
    alt = f"{title}: loss {number(first['loss'])} at first, {number(last['loss'])} at {count(last['tokens'])} tokens."
    caption = f"{title}: loss against training tokens{', with each layer as a thin line' if layers else ''}."
    drawing = curves([*layers, Line("mean" if layers else "loss", tokens, losses)], "training tokens", unit, alt)
    return Figure(f"loss-{stage}", caption, alt, drawing)


def _layers(steps: list[dict[str, Any]]) -> list[Line]:
    if not steps:
        return []
    tokens = _column(steps, "tokens")
    return [Line("", tokens, layer) for layer in np.transpose(_column(steps, "layers"))]


def _column(steps: list[dict[str, Any]], name: str) -> np.ndarray:
    values = np.array([step[name] for step in steps], dtype=float)
    return np.array([part.mean(0) for part in np.array_split(values, min(POINTS, len(values)))])
