"""Processes that end when this one is asked to, after they have kept what there is."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from types import FrameType

from ..launch import AT_ONCE


class Processes:
    """asked: the signal that asked this process to end. Then those that run are asked, too, and no other is started;
    a second one does not wait for them, unless it comes AT_ONCE."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.last = -inf
        self.running: set[subprocess.Popen[bytes]] = set()
        # Held while one is started, or it could be missed when all are asked.
        self.lock = threading.RLock()

    def run(self, command: list[str], environment: dict[str, str], log: Path) -> int | None:
        """The exit code, negative where a signal killed it; None where it is too late to start one.

        environment: what it finds beside ours. log: the file that its output is added to.
        """
        with log.open("ab") as output, self.lock:
            if self.asked:
                return None
            process = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Or Ctrl-C would reach it at once, which a run does not end as well of as of SIGTERM.
                process_group=0,
            )
            self.running.add(process)
        code = process.wait()
        with self.lock:
            self.running.discard(process)
        if code:
            # Its own processes, which would go on holding memory and GPUs.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return code

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        if (now := time.monotonic()) - self.last < AT_ONCE:
            return
        self.last = now
        with self.lock:
            passed_on = signal.SIGKILL if self.asked else signal.SIGTERM
            self.asked = signal.Signals(number)
            for process in self.running:
                process.send_signal(passed_on)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM do no more than ask."""
        before = {each: signal.signal(each, self.ask) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
