"""What the student's attention is good for: how much worse it predicts with less in its place."""

import math
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ..flexformer.token_mixer import TokenMixer
from .perplexity import Reading, read
from .replaced import CONTROLS, replaced
from .scores import score
from .subject import NotMeasured, Subject

#: What stands for all swapped layers at once among the single ones.
WHOLE = "all"


def measure_contribution(subject: Subject) -> dict[str, Any]:
    """Mean nats per target that every control loses against the student, by domain: in one layer, all others being as
    they are, and in all of them. A control that a layer's mixer does not have is left out.

    {"nats": {layer or "all": {control: {domain: nats}}}, "error": the same of their standard errors over blocks,
    "student": {domain: nats}, "blocks": {domain: count}, "accuracy": {"student" or control in all layers: {domain:
    share}}, None of a task without right answers}
    """
    student = subject.student
    if not student.mixers:
        raise NotMeasured("no layer was swapped")
    controls = made(student.mixers)
    own = readings(subject)
    nats: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    right = {"student": shares(own)} if subject.task.scored else None
    for (where, name), mixers in tqdm(controls.items(), "contribution", unit="control", leave=False):
        with replaced(student, mixers):
            left = readings(subject)
        if where == WHOLE and right is not None:
            right[name] = shares(left)
        lost = {domain: losses(each) - losses(own[domain]) for domain, each in left.items()}
        nats.setdefault(where, {})[name] = {domain: each.mean().item() for domain, each in lost.items()}
        spread = {
            domain: (each.std() / len(each) ** 0.5).item() if len(each) > 1 else math.nan
            for domain, each in lost.items()
        }
        errors.setdefault(where, {})[name] = spread
    return {
        "nats": nats,
        "error": errors,
        "student": {domain: losses(each).mean().item() for domain, each in own.items()},
        "blocks": {domain: len(each.nll) for domain, each in own.items()},
        "accuracy": right,
    }


def made(mixers: dict[int, TokenMixer]) -> dict[tuple[str, str], dict[int, TokenMixer]]:
    """By where and what: the mixers of a control, by layer."""
    single = {
        (str(layer), name): {layer: found}
        for layer, mixer in mixers.items()
        for name, control in CONTROLS.items()
        if (found := control(mixer)) is not None
    }
    names = {name for _, name in single}
    whole = {
        (WHOLE, name): {layer: single[str(layer), name][layer] for layer in mixers if (str(layer), name) in single}
        for name in CONTROLS
        if name in names
    }
    return whole | single


def readings(subject: Subject) -> dict[str, Reading]:
    """What the student makes of every domain as it is now."""
    blocks = subject.config.measure.contribution.blocks
    return {
        domain: read(subject.student, subject.held_out(domain, blocks), subject.device, subject.task)
        for domain in subject.domains
    }


def losses(reading: Reading) -> Tensor:
    """−log p of every block, mean over its targets and weighted by their number: (blocks,)."""
    return reading.nll * reading.weights


def shares(found: dict[str, Reading]) -> dict[str, float]:
    """How often what was to be found is, by domain."""
    return {domain: score(each, classes=0, positive=0)["accuracy"] for domain, each in found.items()}
