"""The door again, once for every device: a command that wants several starts as many processes of itself.

A launcher that stands there already, torchrun or srun, is left to it. torchrun itself is not used: it would answer a
mistake with a page, and kill a stage that keeps its checkpoint after half a minute.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .cores import cpu_cores
from .errors import UserError

#: What a launcher leaves in the environment: torchrun, and srun, which a script of several tasks is not yet.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS")
#: Where a process finds in its environment the id of the one that has started it, which it is to end with.
CHILD = "DISTILL_CHILD"
#: Of Linux: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
#: Seconds in which the others may end once one has failed; then they are killed.
GRACE = 15
#: Seconds in which a signal that comes again is the same: a terminal sends it to all, and one of them may pass it on.
AT_ONCE = 0.3
#: Seconds between two looks at the processes.
PAUSE = 0.1


def end_with_parent() -> None:
    """Has SIGTERM come when the process that has started this one as its CHILD ends, be it by SIGKILL: nobody would be
    left to end this one. On Linux alone."""
    if (parent := os.environ.pop(CHILD, None)) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            # It has ended before this was asked for.
            os.kill(os.getpid(), signal.SIGTERM)


def launched() -> bool:
    """Whether a launcher has started this process, as one of those of a run."""
    elastic, slurm = LAUNCHERS
    return elastic in os.environ or int(os.environ.get(slurm, 1)) > 1


def to_launch(trainer: dict[str, Any]) -> int:
    """How many processes this one has to start: none where one is enough, or where a launcher has started them.

    UserError for several nodes, of which this process knows nothing.
    """
    if launched():
        return 0
    if trainer["num_nodes"] != 1:
        raise UserError(f"trainer.num_nodes={trainer['num_nodes']}: torchrun or srun starts those, see docs/devices.md")
    devices = trainer["devices"]
    return devices if isinstance(devices, int) and devices > 1 else 0


def launch(count: int, command: Sequence[str]) -> int:
    """Runs `python …` once for each of `count` devices of this machine; returns the exit code of the first that failed,
    0 where none has. Where a signal had asked this process to end it is 128 and the number of that, as a shell has it.

    SIGTERM is passed on, and all end after the same step. Where one process has ended unfinished, for whatever reason,
    the others are given a while, and then killed.
    """
    alike = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "distill"}
    alike |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", CHILD: str(os.getpid())}
    threads = {"OMP_NUM_THREADS": str(max(1, cpu_cores() // count))}
    processes: list[subprocess.Popen] = []
    with sigterm_for(processes) as asked:
        for rank in map(str, range(count)):
            given = threads | dict(os.environ) | alike | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen([sys.executable, *command], env=given))
            if asked:
                # It came before there was this one.
                processes[-1].send_signal(asked[-1])
        code = first_failure(processes)
        if code:
            end(processes)
        for each in processes:
            each.wait()
    if code and asked:
        # However they took it.
        return 128 + asked[-1]
    if code < 0:
        print(f"distill: {signal.Signals(-code).name} has ended one of {count} processes", file=sys.stderr)
    return code if code >= 0 else 128 - code


def first_failure(processes: list[subprocess.Popen]) -> int:
    """Waits for it; 0 once all are through without."""
    while True:
        codes = [each.poll() for each in processes]
        if failed := [code for code in codes if code]:
            # Who was told of a mistake has said so.
            return 2 if 2 in failed else failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(PAUSE)


def end(processes: list[subprocess.Popen]) -> None:
    """Those that wait for one that is gone do not hear of SIGTERM."""
    for each in processes:
        each.terminate()
    until = time.monotonic() + GRACE
    for each in processes:
        try:
            each.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()


@contextmanager
def sigterm_for(processes: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Inside, SIGTERM is theirs; yields those that came. Ctrl-C reaches all of a terminal's processes by itself."""
    came: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        came.append(number)
        for each in processes:
            each.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
