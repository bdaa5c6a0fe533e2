"""Decoding and prefill, student and teacher side by side, by length and batch."""

import statistics
import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from ..measure.cost import out_of_memory, wait
from .steps import Step, captured, student_step, teacher_step, tokens

#: Rounds that are timed, after so many to warm up. In every one both sides have their turn.
ROUNDS, WARM = 15, 3
#: Steps of decoding to a round.
STEPS = 4
WHO = ("teacher", "student")


@dataclass(frozen=True)
class Timing:
    """seconds: by who, the median of a step, or of a text read whole. speedup: the median over rounds of the teacher's
    over the student's; error: half of what lies between its quartiles. kept_bytes: by who, what decoding goes on from.
    """

    what: str
    batch: int
    length: int
    seconds: dict[str, float]
    speedup: float
    error: float
    kept_bytes: dict[str, int] | None = None


@torch.no_grad()
def time_decode(models: dict[str, Any], lengths: list[int], batches: list[int], graphs: bool) -> list[Timing]:
    """A token after each length. graphs: both as CUDA graphs. Ends a batch before the length there is no memory for."""
    make, found = {"teacher": teacher_step, "student": student_step}, []
    for batch, length in tqdm(list(product(batches, lengths)), "decode", unit="length"):
        try:
            made = {who: make[who](models[who], batch, length) for who in WHO}
            steps = {who: captured(step) if graphs else step for who, (step, _) in made.items()}
            seconds, speedup, error = side_by_side(steps, STEPS, models["teacher"].device)
        except RuntimeError as problem:
            if not out_of_memory(problem):
                raise
            continue
        kept = {who: kept for who, (_, kept) in made.items()}
        found.append(Timing("decode", batch, length, seconds, speedup, error, kept))
    return found


@torch.no_grad()
def time_prefill(models: dict[str, Any], lengths: list[int], batches: list[int], graphs: bool) -> list[Timing]:
    """A text of each length read whole, and what its first new token needs is kept: the time to the first token."""
    found = []
    for batch, length in tqdm(list(product(batches, lengths)), "prefill", unit="length"):
        steps = {who: reading(models[who], batch, length) for who in WHO}
        try:
            found.append(Timing("prefill", batch, length, *side_by_side(steps, 1, models["teacher"].device)))
        except RuntimeError as problem:
            if not out_of_memory(problem):
                raise
    return found


def reading(model: Any, batch: int, length: int) -> Step:
    ids = tokens(model, batch, length)
    return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)


def side_by_side(steps: dict[str, Step], times: int, device: torch.device) -> tuple[dict[str, float], float, float]:
    """Median seconds of each, the median of their quotients by round, and half the span of its quartiles."""
    rounds: list[dict[str, float]] = []
    for _ in range(WARM + ROUNDS):
        rounds.append({who: clocked(step, times, device) for who, step in steps.items()})
    rounds = rounds[WARM:]
    quotients = [each["teacher"] / each["student"] for each in rounds]
    low, middle, high = statistics.quantiles(quotients, n=4)
    return {who: statistics.median(each[who] for each in rounds) for who in WHO}, middle, (high - low) / 2


def clocked(step: Step, times: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait(device)
    return (time.perf_counter() - start) / times


#: What can be timed, by name.
TIMED = {"decode": time_decode, "prefill": time_prefill}
