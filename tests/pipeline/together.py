"""Two processes that a launcher could have started, made in a moment: they come of one that has imported all before."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.launch import free_port

COUNT = 2


def together(work: Callable[..., Any], folder: Path, *given: tuple[Any, ...]) -> list[tuple[int, Any, str]]:
    """Of each process its exit code, what `work` returned there, and what it wrote to stderr.

    given: what `work` is called with in each, or in all of them. folder: where texts and messages are kept.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.conftest", "distill.pipeline", "distill.ranks"])
    port, folder = free_port(), folder / "together"
    folder.mkdir(exist_ok=True)
    started = []
    for rank in range(COUNT):
        here, there = context.Pipe(duplex=False)
        mine = given[rank] if len(given) > 1 else given[0]
        process = context.Process(target=_one, args=(rank, port, folder, there, work, mine))
        process.start()
        there.close()
        started.append((process, here))
    found = []
    for rank, (process, here) in enumerate(started):
        try:
            value = here.recv()
        except EOFError:
            value = None
        process.join()
        found.append((process.exitcode, value, (folder / f"{rank}.err").read_text()))
    return found


def _one(rank: int, port: int, folder: Path, pipe: Any, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    import datasets
    import torch

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    os.dup2(os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(COUNT), "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    pipe.send(work(*given))
