"""What every stage does beside training: it logs, stops before a loss that is no number spreads, and shows progress."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.distributed.tensor import DTensor

from .. import ranks
from ..errors import UserError
from ..flexformer.feature_map import FeatureMap
from ..rundir import RunDirectory
from ..task import tokens_of
from .kept import found


class Meter(Callback):
    """Loss, rate and learning rate: one object per logged step in metrics.jsonl, and on the progress bar.

    every: optimiser steps from one line to the next; the first and the last of `steps` are always logged.
    """

    def __init__(self, name: str, run: RunDirectory, every: int, steps: int):
        self.name, self.run, self.every, self.steps = name, run, every, steps
        self.tokens, self.written = 0, 0
        # Seconds that the stage took until the checkpoint that it goes on from.
        self.before = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": time.monotonic() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.before = state_dict["tokens"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.start, self.written = time.monotonic() - self.before, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        # Afterwards the schedule has already moved on to the next step.
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.tokens += tokens_of(batch)
        step = trainer.global_step
        due = step == 1 or step % self.every == 0 or step == self.steps
        if due and step > self.written:
            self.written = step
            self.write(trainer, module, step)

    def write(self, trainer: Trainer, module: Any, step: int) -> None:
        seconds = time.monotonic() - self.start
        losses = ranks.average(torch.stack(list(module.losses.values()))).tolist()
        mean = sum(losses) / len(losses)
        module.log_dict({"loss": mean, "tokens/s": self.tokens / seconds}, prog_bar=True, logger=False)
        line = {
            "stage": self.name,
            "step": step,
            "tokens": self.tokens,
            "loss": mean,
            "lr": self.learning_rate,
            "seconds": round(seconds, 3),
        }
        if ranks.rank():
            return
        if len(losses) > 1:
            line["layers"] = losses
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        scalars = {f"{self.name}/{key}": line[key] for key in ("loss", "lr", "tokens", "seconds")}
        for extra in trainer.loggers:
            extra.log_metrics(scalars, step=step)


class Redraw(Callback):
    """Draws random features anew after every `redraw_every`-th step, for the maps that ask for it.

    Not in the last fifth of the steps, where the learning rate nears nought: the weights settle on the draw that the
    student is served with.
    """

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        step = trainer.global_step + 1
        if 5 * step > 4 * trainer.max_steps:
            return
        for each in module.modules():
            if isinstance(each, FeatureMap) and each.redraw_every and step % each.redraw_every == 0:
                each.redraw()


class NumberGuard(Callback):
    """Stops the run before a loss or a gradient that is not a number reaches the weights.

    To look at one is to wait for all that was launched: it is done once for a step, as late as it can be.
    """

    def __init__(self, name: str, checkpoints: Path):
        self.name, self.checkpoints = name, checkpoints
        # The batches of a step, and for each the loss and its parts.
        self.seen: list[tuple[Any, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, module: Any, loss: torch.Tensor) -> None:
        # Stacked, since a graph writes the next where these are.
        self.seen.append((self.batch, torch.stack([*module.losses.values(), loss.detach()])))

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        seen, self.seen = self.seen, []
        gradients = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
        # In float16 such gradients are ordinary: the scaler skips the step and lowers its scale.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        losses = torch.stack([parts for _, parts in seen])
        norms = torch.stack(torch._foreach_norm(list(gradients.values()))) if not scaled else torch.zeros_like(losses)
        if isinstance(norms, DTensor):
            # Asked of all, which one whose loss is bad would not come to later.
            norms = norms.full_tensor()
        fine = torch.isfinite(losses).all() & torch.isfinite(norms).all()
        if not ranks.anywhere(not fine):
            return
        bad = next((place for place, parts in enumerate(losses) if not torch.isfinite(parts).all()), len(seen))
        # In all processes, since what is computed anew asks all of them, too.
        if (first := min(ranks.gathered(bad))) < len(seen):
            self.stop(trainer, next(filter(None, ranks.gathered(bad_loss(module, *seen[first])))))
        self.stop(trainer, f"gradient of {list(gradients)[int((~torch.isfinite(norms)).nonzero()[0])]}")

    def stop(self, trainer: Trainer, where: str) -> None:
        kept = next((str(path) for _, path in found(self.checkpoints, self.name)), "none was written yet")
        raise UserError(
            f"stage {self.name}, step {trainer.global_step + 1}: the {where} is not a number; "
            f"begin again with a lower learning rate, in another directory (last good checkpoint: {kept})"
        )


def bad_loss(module: Any, batch: Any, parts: torch.Tensor) -> str | None:
    """Which part of a loss is not a number, and the weight or module that this comes from; None where all are."""
    weights = (name for name, each in module.named_parameters() if not torch.isfinite(each).all())
    through = next(weights, None) or first_bad_module(module, batch)
    bad = [name for name, part in zip([*module.losses, "the sum"], parts, strict=True) if not torch.isfinite(part)]
    return f"loss of {bad[0]}" + (f" (first in {through})" if through else "") if bad else None


@torch.no_grad()
def first_bad_module(module: Any, batch: Any) -> str | None:
    """The innermost module that first makes something that is not a number of this batch; None if none does."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(each: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    hooks = [each.register_forward_hook(watch(name)) for name, each in module.named_modules() if name]
    try:
        # One kernel after the other: a graph runs no hooks, and what it holds may be needed.
        module.steps.end()
        module.training_step(batch, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


class ProgressBar(TQDMProgressBar):
    """Lightning's bar under the name of the stage."""

    def __init__(self, name: str):
        super().__init__(refresh_rate=5)
        self.name = name

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.name)
        # Lightning tells of these where an epoch begins, which it does not where a stage goes on.
        bar.reset(self.trainer.num_training_batches)
        bar.initial = bar.n = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.name)

    def on_exception(self, *args: Any) -> None:
        # What is said of it has a line of its own; before the first step there is no bar.
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()
