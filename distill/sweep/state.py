"""What became of a job, from what its directory holds."""

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..whole import whole

#: Why a job ended before it was finished. It is there until the job goes on.
FAILED = "failed.json"


@dataclass(frozen=True)
class State:
    """name: finished | running | failed | killed | unfinished | not begun. reason: of one that failed, the error; of
    one that was killed, the signal. Unfinished is what nobody was left to tell of."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def mark(directory: Path, state: State) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with whole(directory / FAILED) as file:
        file.write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")


def unmark(directory: Path) -> None:
    (directory / FAILED).unlink(missing_ok=True)


def state(directory: Path) -> State:
    if (directory / "report").exists() or (directory / "teacher").exists():
        return State("finished")
    if (directory / FAILED).exists():
        return State(**json.loads((directory / FAILED).read_text(encoding="utf-8")))
    if held(directory):
        return State("running")
    return State("unfinished" if (directory / "config.yaml").exists() else "not begun")


def held(directory: Path) -> bool:
    """Whether a run has the directory to itself, see `RunDirectory.lock`."""
    try:
        with (directory / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # Nobody ever had it.
        return False
    return False
