"""One command line for the runs of several seeds."""

import shlex

DOOR = ["python", "-m", "distill"]


def over_seeds(commands: dict[int, str]) -> str | None:
    """A sweep over the seeds where the commands by seed differ in nothing else; else one after the other."""
    if len(commands) < 2:
        return next(iter(commands.values()), None)
    bare = {tuple(_without_seed(command)) for command in commands.values()}
    words = list(bare.pop())
    if bare or words[: len(DOOR)] != DOOR:
        return "; ".join(commands[seed] for seed in sorted(commands))
    seeds = ",".join(map(str, sorted(commands)))
    return shlex.join([*DOOR, "-m", *words[len(DOOR) :], f"seed={seeds}"])


def _without_seed(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        return [command]
    return [word for word in words if not word.startswith("seed=")]
