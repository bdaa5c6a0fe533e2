"""Running a stage: the Trainer from the configuration, with what every stage wants beside it."""

import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import hydra
import torch
from hydra.errors import HydraException
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from .. import ranks
from ..config import Config
from ..data import Corpus
from ..device import compile_on, slow_in_bfloat16
from ..errors import UserError
from ..flexformer.attempt import taken
from ..progress import chance
from ..rundir import RunDirectory
from ..sweep.command import quoted
from .callbacks import Meter, NumberGuard, ProgressBar, Redraw
from .compiled import compiled
from .kept import Batches, Chance, CheckedIO, Keep, found, newest
from .sharded import Sharded, gather, twin
from .shortcuts import shortcuts
from .stage import Stage, launches_alike

# What remains are warnings; that there is no TPU is none.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


#: Every device has all of a stage. Its buffers are the same on all as they are: whatever changes them draws alike. The
#: gradients of a graph come at once, and go in few pieces, in MB; others still go while the next are computed. Where
#: attention ignores its queries, what makes them has none.
replicated = partial(
    DDPStrategy,
    gradient_as_bucket_view=True,
    broadcast_buffers=False,
    bucket_cap_mb=128,
    find_unused_parameters=True,
)
#: How several devices train one stage, by the name used in trainer.strategy.
STRATEGIES: dict[str, Callable[[], Strategy]] = {"auto": replicated, "ddp": replicated, "fsdp": Sharded}


class Wanted(Protocol):
    """What every stage's configuration has."""

    max_steps: int
    batch_size: int


def fit(stage: Stage, name: str, wanted: Wanted, corpus: Corpus, config: Config, run: RunDirectory) -> int:
    """Runs one stage of `wanted.max_steps` optimiser steps; returns the tokens it has seen.

    Where a run is resumed a stage that was finished is as it was left, and another goes on from its last checkpoint.
    """
    if (told := run.progress.restore(name, stage)) is not None:
        stage.on_fit_end()
        return run.remember(name, told)
    begun, step = ranks.first(lambda: go_on(name, run, wanted.max_steps)) if run.begun else (None, 0)
    if step and not ranks.rank():
        print(f"stage {name} goes on after step {step} of {wanted.max_steps}")
    # What rounding or time could have made different is as it is in the first process.
    ranks.same(stage)
    each, last = config.trainer["accumulate_grad_batches"], wanted.max_steps
    meter = Meter(name, run, config.trainer["log_every_n_steps"], last)
    keep = Keep(name, run.checkpoints, last, config.checkpoint_minutes)
    trainer = make_trainer(
        config,
        max_steps=last,
        callbacks=[
            meter,
            Redraw(),
            NumberGuard(name, run.checkpoints),
            ProgressBar(name),
            Chance(ranks.told(chance())),
            keep,
        ],
        enable_checkpointing=False,
        plugins=[CheckedIO()],
        logger=run.logger,
        default_root_dir=str(run.path),
    )
    with run.timed(name), warnings.catch_warnings(), matmul_precision(config.matmul_precision):
        # A student trains without dropout, and Lightning's own use of torch is its business.
        for harmless in (
            ".*treespec",
            ".*does not have many workers",
            ".*in eval mode",
            # Its new name is not in every PyTorch that this runs on.
            ".*broadcast_buffers",
        ):
            warnings.filterwarnings("ignore", harmless)
        taken.clear()
        stage.steps.graphs = config.cuda_graphs and graphed(trainer) and launches_alike(stage)
        stage.steps.accumulates = trainer.accumulate_grad_batches > 1
        trained = twin(stage) if isinstance(trainer.strategy, Sharded) else stage
        batches = Batches(corpus, last * each, wanted.batch_size, config.seed, step * each)
        try:
            with shortcuts(trained.running()), compiled(trained.models() if config.compile else ()):
                trainer.fit(trained, batches, ckpt_path=begun)
        except SIGTERMException as leaves:
            raise left(name, trainer.global_step, keep.asked, run) from leaves
        finally:
            stage.steps.end()
            keep.stop()
        if trained is not stage:
            gather(trained, stage)
    run.ways[name] = {what: list(each) for what, each in taken.items()}
    run.seconds[name] += meter.before
    run.progress.keep(name, stage, run.told(name) | {"tokens": meter.tokens})
    if asked := ranks.most(keep.asked):
        raise left(name, last, asked, run)
    return meter.tokens


def left(name: str, step: int, asked: int, run: RunDirectory) -> SystemExit:
    """Says so; with the exit code that a shell gives what a signal has ended."""
    if not ranks.rank():
        where = shlex.quote(f"run_dir={quoted(run.path)}")
        ended = f"stage {name} ended after step {step}, as {signal.Signals(asked).name} asked"
        print(f"distill: {ended}; {where} resume=true goes on with it", file=sys.stderr)
    return SystemExit(128 + asked)


def go_on(name: str, run: RunDirectory, steps: int) -> tuple[Path | None, int]:
    """The checkpoint that a stage goes on from and its step, beside which nothing is left of what was begun."""
    begun, step = newest(run.checkpoints, name, steps)
    run.forget(name, step)
    for later in (path for number, path in found(run.checkpoints, name) if number > step):
        CheckedIO().remove_checkpoint(later)
    return begun, step


@contextmanager
def matmul_precision(wanted: str) -> Iterator[None]:
    """Float32 matrix products at torch's precision `wanted` inside the block; measurements are made outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def make_trainer(config: Config, **kwargs: Any) -> Trainer:
    """The configured lightning.Trainer, without what it would print about itself."""
    quiet = {"enable_model_summary": False, "num_sanity_val_steps": 0, "_convert_": "all"}
    several = ranks.size() > 1
    how = {"strategy": STRATEGIES[config.trainer["strategy"]]() if several else "auto"}
    plugins = [*kwargs.pop("plugins", []), *([ranks.environment()] if several else [])]
    with warnings.catch_warnings():
        # Who has a GPU and asks for a processor means it.
        warnings.filterwarnings("ignore", ".*available but not used")
        return hydra.utils.instantiate(config.trainer, **kwargs, **quiet, **how, plugins=plugins)


def graphed(trainer: Trainer) -> bool:
    """Whether a step of this Trainer can be a CUDA graph: where each GPU has all weights, and gradients are not scaled
    on their way, as of float16."""
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    return whole and not scaled and trainer.strategy.root_device.type == "cuda"


def device_of(config: Config) -> torch.device:
    """The device that the configured Trainer trains on; UserError where Lightning refuses the configuration."""
    try:
        trainer = make_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (HydraException, MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {str(error.__cause__ or error).splitlines()[0]}") from error
    return trainer.strategy.root_device


def device_to_train_on(config: Config) -> torch.device:
    """As `device_of`; UserError, too, where models are to be compiled and it is none that this can be trusted on.
    What the precision costs there is told."""
    device = device_of(config)
    if config.compile:
        compile_on(device, "compile=true")
    precision = str(config.trainer["precision"])
    if precision.startswith("bf16") and slow_in_bfloat16(device) and not ranks.rank():
        told = f"trainer.precision={precision}: this processor multiplies bfloat16 many times as slowly as float32"
        print(f"{told}; trainer.precision=32-true is faster", file=sys.stderr)
    return device
