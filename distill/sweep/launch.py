"""Runs the jobs of a sweep, each in a process of its own: one that is killed or crashes takes no other along."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue

from omegaconf import DictConfig

from ..launch import CHILD
from ..report.quantities import duration
from .command import of_job
from .jobs import Job, differing
from .places import places
from .processes import Processes
from .state import State, mark, state, unmark

#: Beside what a run leaves, what it said.
LOG = "log.txt"


def launch(jobs: Sequence[Job], config: DictConfig, at_a_time: int) -> None:
    """Those that are finished are not started; of one that ends in any other way, its directory tells how.

    SystemExit with 128 and the signal's number, as a shell has it, where Ctrl-C or SIGTERM ended the sweep.
    """
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for place in places(at_a_time):
        free.put(place)
    processes = Processes()

    def run(job: Job, told: str) -> None:
        place, start = free.get(), time.monotonic()
        try:
            if state(job.directory).name == "finished" or processes.asked:
                return
            unmark(job.directory)
            job.directory.mkdir(parents=True, exist_ok=True)
            print(f"{job} in {job.directory}: {told}", flush=True)
            code = processes.run(
                of_job(job, config), place | {"PYTHONUNBUFFERED": "1", CHILD: str(os.getpid())}, job.directory / LOG
            )
        finally:
            free.put(place)
        if code:
            leave_word(job, code)
        if code is not None:
            print(f"{job} {state(job.directory)}, after {duration(time.monotonic() - start)}", flush=True)

    with processes.listening(), ThreadPoolExecutor(at_a_time) as pool:
        waited_for = [pool.submit(run, *each) for each in zip(jobs, differing(jobs), strict=True)]
        # Python answers signals in this thread, which may not wait on and on.
        while wait(waited_for, timeout=1).not_done:
            pass
    for each in waited_for:
        each.result()
    if processes.asked:
        folder = config.hydra.sweep.dir
        ended = f"the sweep in {folder} ended, as {processes.asked.name} asked"
        print(f"distill: {ended}; hydra.sweep.dir={folder} resume=true goes on with it", file=sys.stderr)
        raise SystemExit(128 + processes.asked)


def leave_word(job: Job, code: int) -> None:
    """Marks a job that ended unfinished, and without a word of its own."""
    found = state(job.directory).name
    # One that runs does so for another command.
    if found not in ("finished", "running") and (code < 0 or found != "failed"):
        mark(job.directory, ended(code, job))


def ended(code: int, job: Job) -> State:
    """A run that SIGTERM ends has kept what there was, and says so by its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        code = -number if code == 128 + number else code
    if code < 0:
        return State("killed", signal.Signals(-code).name)
    return State("failed", f"exit code {code}, see {job.directory / LOG}")
