"""Processes that begin with everything imported, where a new one would take seconds to import it."""

import multiprocessing
import os
import sys
from typing import Any, BinaryIO, ClassVar

import torch

from distill.launch import CHILD

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "distill.__main__",
        "distill.pipeline",
        "distill.report.sections.headline",
        "transformers.models.gpt2.modeling_gpt2",
        "hydra.core.override_parser.overrides_parser",
        "tests.pipeline.warm",
    ]
)


class Popen:
    """As much of subprocess.Popen as `distill.sweep.processes` takes; running: all there are, by their commands."""

    running: ClassVar[list["Popen"]] = []

    def __init__(self, args: list[str], env: dict[str, str], stdout: BinaryIO, **others: Any):
        assert args[:3] == [sys.executable, "-m", "distill"] and others["process_group"] == 0
        self.args, self.process = args, context.Process(target=enter, args=(args[3:], env, stdout.name))
        self.process.start()
        self.running.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def enter(arguments: list[str], environment: dict[str, str], log: str) -> None:
    from distill.__main__ import main

    os.setpgid(0, 0)
    # Its parent is the process that has imported everything.
    os.environ |= environment | {CHILD: str(os.getppid())}
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for each in (sys.stdout, sys.stderr):
        os.dup2(output, each.fileno())
    torch.set_num_threads(1)
    sys.argv = ["distill", *arguments]
    main()
