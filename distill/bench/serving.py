"""Decoding, prefill and steps of training, student and teacher side by side, by length and batch."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..errors import UserError, reason
from ..measure.steps import STEP_OF, WHO, Step, tokens
from ..measure.turns import in_turn, out_of_memory, while_there_is_room
from ..stages.graphs import BEFORE, Inputs, Loss, Steps, cause
from . import faster

#: Rounds that are timed, after so many to warm up.
TURNS = 15, 3
#: Steps of decoding, and of training on a GPU, to a round: one after the other, without waiting in between.
STEPS = 4
Faster = Callable[[Step], Step]
#: Of a step of training, all but attention, see `free`.
REST = "rest"


@dataclass(frozen=True)
class Timing:
    """seconds: by who, the median of a step, or of a text read whole. speedup: the median over rounds of the teacher's
    over the student's; error: half of what lies between its quartiles. kept_bytes: by who, what decoding goes on from.

    Of training there is a third, REST: the teacher without its attention.
    """

    what: str
    batch: int
    length: int
    seconds: dict[str, float]
    speedup: float
    error: float
    kept_bytes: dict[str, int] | None = None


@torch.no_grad()
def time_decode(models: dict[str, Any], lengths: list[int], batches: list[int], faster: list[Faster]) -> list[Timing]:
    """A token after each length. faster: what is done to the steps of both sides, one after the other."""
    return [timing for batch in batches for timing in time_decode_of(batch, models, lengths, faster)]


def time_decode_of(batch: int, models: dict[str, Any], lengths: list[int], faster: list[Faster]) -> list[Timing]:
    """Of one batch, whose caches and graphs are gone before the next needs room."""

    def both(length: int) -> dict[str, tuple[Step, int]]:
        made = {}
        for who in WHO:
            step, kept = STEP_OF[who](models[who], batch, length)
            for way in faster:
                step = way(step)
            made[who] = step, kept
        return made

    told = f"decode, batch {batch}"
    made = while_there_is_room(sorted(lengths), both, told)
    steps = {length: {who: step for who, (step, _) in each.items()} for length, each in made.items()}
    seconds = in_turn(steps, STEPS, models["teacher"].device, told, *TURNS)
    kept = {length: {who: held for who, (_, held) in made[length].items()} for length in seconds}
    return [timing("decode", batch, length, taken, kept[length]) for length, taken in seconds.items()]


@torch.no_grad()
def time_prefill(models: dict[str, Any], lengths: list[int], batches: list[int]) -> list[Timing]:
    """A text of each length read whole, and what its first new token needs is kept: the time to the first token."""
    return time_whole("prefill", reading, models, lengths, batches, 1)


def time_train(
    models: dict[str, Any], lengths: list[int], batches: list[int], graphs: bool, compiled: bool
) -> list[Timing]:
    """A text of each length read whole, and the gradients of its loss for all weights: all but the optimizer's part.

    graphs: as CUDA graphs, as a run takes its steps. compiled: what the compiler fuses of both models.
    """
    made = partial(training, graphs=graphs, compiled=compiled)
    return time_whole("train", made, models, lengths, batches, STEPS if models["teacher"].device.type == "cuda" else 1)


def time_whole(
    what: str,
    make: Callable[[Any, int, int], Step],
    models: dict[str, Any],
    lengths: list[int],
    batches: list[int],
    times: int,
) -> list[Timing]:
    def both(batch: int, length: int) -> dict[str, Step]:
        return {who: make(model, batch, length) for who, model in models.items()}

    found = []
    for batch in batches:
        told = f"{what}, batch {batch}"
        steps = while_there_is_room(sorted(lengths), partial(both, batch), told)
        for length, seconds in in_turn(steps, times, models["teacher"].device, told, *TURNS).items():
            found.append(timing(what, batch, length, seconds))
    return found


def reading(model: Any, batch: int, length: int) -> Step:
    ids = tokens(model, batch, length)
    return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)


def training(model: Any, batch: int, length: int, graphs: bool, compiled: bool) -> Step:
    called = faster.compiled(model) if compiled else model

    def compute(inputs: Inputs) -> Loss:
        return Loss(called(**inputs, labels=inputs["input_ids"], use_cache=False).loss, {})

    inputs, steps = {"input_ids": tokens(model, batch, length)}, Steps(compute, model.parameters)
    steps.graphs = graphs

    def step() -> None:
        model.zero_grad(set_to_none=True)
        steps(inputs).total.backward()  # type: ignore[no-untyped-call]

    if graphs:
        for _ in range(BEFORE):
            step()
        try:
            steps.graph = steps.captured(inputs)
        except Exception as problem:
            first = cause(problem)
            if isinstance(first, RuntimeError) and out_of_memory(first):
                raise first from None
            what = f"a step of {batch} × {length:,} tokens makes no CUDA graph here: {reason(first)}"
            raise UserError(f"--graphs: {what}; leave it out") from problem
    return step


def timing(
    what: str, batch: int, length: int, seconds: dict[str, list[float]], kept: dict[str, int] | None = None
) -> Timing:
    quotients = [teacher / student for teacher, student in zip(seconds["teacher"], seconds["student"], strict=True)]
    low, middle, high = statistics.quantiles(quotients, n=4)
    medians = {who: statistics.median(each) for who, each in seconds.items()}
    return Timing(what, batch, length, medians, middle, (high - low) / 2, kept)
