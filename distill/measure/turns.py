"""Timing side by side, at several lengths: student and teacher, or ways to compute the same."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

from .steps import Step

Made = TypeVar("Made")


def in_turn(
    steps: dict[int, dict[str, Step]], times: int, device: torch.device, told: str, rounds: int, warm: int
) -> dict[int, dict[str, list[float]]]:
    """Seconds of each step, of every round, by length and who: all have their turn in each, so that a machine that is
    faster at one time than at another is so for all. Lengths from that on which there is no memory for are left out.

    times: how often a step is taken each time. warm: rounds that do not count, before those that do.
    """

    def tried(length: int) -> dict[str, list[float]]:
        for step in steps[length].values():
            step()
        return {who: [] for who in steps[length]}

    found = while_there_is_room(sorted(steps), tried, told)
    for number in tqdm(range(warm + rounds), told, unit="round", leave=False):
        for length, seconds in found.items():
            for who in seconds:
                taken = clocked(steps[length][who], times, device)
                if number >= warm:
                    seconds[who].append(taken)
    return found


def while_there_is_room(lengths: list[int], work: Callable[[int], Made], told: str) -> dict[int, Made]:
    """What is made for each length, until there is no memory for one."""
    made: dict[int, Made] = {}
    # What is built at its first use can take a minute.
    for length in tqdm(lengths, f"{told}, first steps", unit="length", leave=False):
        try:
            made[length] = work(length)
        except RuntimeError as problem:
            if not out_of_memory(problem):
                raise
            break
    return made


def clocked(step: Step, times: int, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait(device)
    return (time.perf_counter() - start) / times


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(error: RuntimeError) -> bool:
    """A GPU's own, or that of the system, which has no type to know it by."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
