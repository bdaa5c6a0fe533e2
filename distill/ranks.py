"""The processes of a run, one for each device: which of them this is, and what they agree on.

Each goes through the run from its beginning, and the first, rank 0, alone writes what it leaves. A process that nothing
has launched beside others is the first of one, and agrees with itself.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor, nn

from .config import Config
from .errors import UserError
from .launch import LAUNCHERS, launched

T = TypeVar("T")

#: How long one process may wait for another, which may have much to read or to measure. One that fails does not let
#: others wait: who launched them ends them.
PATIENCE = timedelta(days=1)
#: Where the processes leave each other notes, while they are together.
_notes: list[dist.Store] = []


def environment() -> ClusterEnvironment | None:
    """What the launcher says of this process, in Lightning's form; None where there is none, or no longer."""
    if not launched():
        return None
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    try:
        # Resuming is `resume=true`, and SLURM's own affair.
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise UserError(f"srun: {error}") from error


def join() -> None:
    """Meets the other processes. What all of them would say from here on, but why one ends, the first says."""
    said = environment()
    assert said is not None
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = said.main_address, str(said.main_port)
    dist.init_process_group("gloo", rank=said.global_rank(), world_size=said.world_size(), timeout=PATIENCE)
    _notes.append(dist.distributed_c10d._get_default_store())
    if rank():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")


def part() -> bool:
    """From here on each process is alone; whether this is the first, which has what is left to itself."""
    leads = not rank()
    if size() > 1:
        dist.destroy_process_group()
        for name in LAUNCHERS:
            os.environ.pop(name, None)
    return leads


def together(config: Config) -> Config:
    """With as many devices as the launcher has started processes; UserError where another number was asked for."""
    devices = per_node()
    started = {"devices": devices, "num_nodes": size() // devices}
    for key, number in started.items():
        # One is what nobody has asked for.
        if config.trainer[key] not in (1, number):
            raise UserError(f"trainer.{key}={config.trainer[key]}: the launcher has started {number}; leave it out")
    if config.trainer["accelerator"] != "cpu" and torch.cuda.is_available():
        reach_gpus(devices)
    return replace(config, trainer=config.trainer | started)


def reach_gpus(devices: int) -> None:
    """From here on these exchange what is theirs by themselves, each process with one of its own."""
    said, there = environment(), torch.cuda.device_count()
    assert said is not None
    if anywhere(devices > there):
        raise UserError(
            f"trainer.devices={devices}: there are GPUs for {there}; give fewer, or trainer.accelerator=cpu"
        )
    torch.cuda.set_device(said.local_rank())
    dist.destroy_process_group()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("gpus", _notes[0]),
        rank=said.global_rank(),
        world_size=said.world_size(),
        timeout=PATIENCE,
    )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def per_node() -> int:
    """The processes of each machine; UserError where these differ."""
    said = environment()
    assert said is not None
    counts = set(Counter(gathered(said.node_rank())).values())
    if len(counts) > 1:
        raise UserError(
            f"the launcher has started {sorted(counts)} processes on different nodes; start as many on each"
        )
    return counts.pop()


def gathered(value: T) -> list[T]:
    """What each process has, in their order."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def anywhere(value: bool) -> bool:
    """Whether it is so in any of the processes."""
    return bool(most(value))


def most(value: int) -> int:
    """The largest in any of the processes."""
    if size() == 1:
        return value
    # Asked at every step: the quickest way there is.
    flag = torch.tensor(int(value))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag)


def told(value: T) -> T:
    """What the first process has."""
    if size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder)
    return holder[0]


def first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone does it; its UserError is raised in all."""
    outcome: tuple[Any, UserError | None] = None, None
    if not rank():
        try:
            outcome = work(), None
        except UserError as error:
            outcome = None, error
    found, problem = told(outcome)
    if problem is not None:
        raise problem
    return found


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes through the block before the others, which then find what it has kept on disk."""
    if rank():
        told(None)
    try:
        yield
    finally:
        if not rank():
            told(None)


def average(tensor: Tensor) -> Tensor:
    """The mean over all processes, in each of them; nothing goes back through it."""
    if size() == 1:
        return tensor
    mean = tensor.detach().clone().to(torch.promote_types(tensor.dtype, torch.float32))
    dist.all_reduce(mean)
    return mean / size()


def weighted(mean: Tensor, of: Callable[[], Tensor]) -> Tensor:
    """A mean over what this process has, so that the mean over processes is the one over all that they have.

    of: a mask of what the mean is over.
    """
    if size() == 1:
        return mean
    count = of().sum()
    share = count / average(count).clamp(min=1e-30)
    # The mean of nothing is no number.
    return torch.where(count > 0, mean * share, torch.zeros_like(mean))


def same(module: nn.Module) -> None:
    """Weights and buffers are those of the first process."""
    if size() > 1:
        for each in module.state_dict().values():
            dist.broadcast(each, 0)


def agree(values: dict[str, Any]) -> None:
    """UserError names the first key whose value is not the same in all processes."""
    said = json.dumps(values, sort_keys=True, default=str)
    if len(set(gathered(hashlib.sha256(said.encode()).hexdigest()))) == 1:
        return
    every = gathered(values)
    keys = sorted(set().union(*every))
    key = next(key for key in keys if any(each.get(key) != every[0].get(key) for each in every))
    other = next(number for number, each in enumerate(every) if each.get(key) != every[0].get(key))
    raise UserError(
        f"{key}={every[0].get(key)} in process 0, {every[other].get(key)} in process {other}: "
        "give all processes of a run the same command"
    )


@cache
def speaks() -> bool:
    """Whether this process is the first to say why the run ends; what fails after it is only what that led to."""
    try:
        return not _notes or _notes[0].add("why", 1) == 1
    except dist.DistError:
        # Who kept the notes is gone already.
        return False
