"""One command line for runs that differ in one word."""

import shlex
from collections.abc import Iterable

DOOR = ["python", "-m", "distill"]


def over_seeds(commands: dict[int, str]) -> str | None:
    """A sweep over the seeds where the commands by seed differ in nothing else; else one after the other."""
    if len(commands) < 2:
        return next(iter(commands.values()), None)
    swept = sweeps("seed", [commands[seed] for seed in sorted(commands)])
    return swept[0] if len(swept) == 1 else "; ".join(commands[seed] for seed in sorted(commands))


def sweeps(key: str, commands: Iterable[str]) -> list[str]:
    """The commands, with those that differ in the value of `key` alone joined to one sweep over it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for command in commands:
        bare, value = _without(key, command)
        groups.setdefault(tuple(bare), []).append(value)
    return [_sweep(key, list(bare), list(dict.fromkeys(values))) for bare, values in groups.items()]


def _sweep(key: str, words: list[str], values: list[str]) -> str:
    if len(words) == 1:
        return words[0]
    if len(values) > 1 and "-m" not in words[len(DOOR) :]:
        words = [*words[: len(DOOR)], "-m", *words[len(DOOR) :]]
    return shlex.join([*words, f"{key}={','.join(values)}"] if any(values) else words)


def _without(key: str, command: str) -> tuple[list[str], str]:
    """Its words without `key=VALUE`, and VALUE; a single word of all of it where it is no command of distill's."""
    try:
        words = shlex.split(command)
    except ValueError:
        return [command], ""
    if words[: len(DOOR)] != DOOR:
        return [command], ""
    found = [word for word in words if word.startswith(f"{key}=")]
    return [word for word in words if word not in found], found[-1].partition("=")[2] if found else ""
