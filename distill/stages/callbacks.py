"""What every stage does beside training: it logs, stops before a loss that is no number spreads, and shows progress."""

import json
import time
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ..errors import UserError
from ..rundir import RunDirectory


class Meter(Callback):
    """Loss, rate and learning rate: one object per logged step in metrics.jsonl, and on the progress bar."""

    def __init__(self, name: str, run: RunDirectory, every: int):
        self.name, self.run, self.every, self.tokens = name, run, every, 0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.start = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.tokens += batch["input_ids"].numel() * trainer.world_size
        last = index + 1 == trainer.num_training_batches
        if not trainer.is_global_zero or (index % self.every and not last):
            return
        seconds = time.monotonic() - self.start
        losses = [loss.item() for loss in module.losses.values()]
        mean = sum(losses) / len(losses)
        module.log_dict({"loss": mean, "tokens/s": self.tokens / seconds}, prog_bar=True, logger=False)
        line = {
            "stage": self.name,
            "step": index + 1,
            "tokens": self.tokens,
            "loss": mean,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(seconds, 3),
        }
        if len(losses) > 1:
            line["layers"] = losses
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        scalars = {f"{self.name}/{key}": line[key] for key in ("loss", "lr", "tokens", "seconds")}
        for extra in trainer.loggers:
            extra.log_metrics(scalars, step=index + 1)


class NumberGuard(Callback):
    """Stops the run before a loss or a gradient that is not a number reaches the weights."""

    def __init__(self, name: str):
        self.name = name

    def on_before_backward(self, trainer: Trainer, module: Any, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            where = next((part for part, each in module.losses.items() if not torch.isfinite(each)), "the sum")
            self.stop(trainer, f"loss of {where}")

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        gradients = [(name, each.grad) for name, each in module.named_parameters() if each.grad is not None]
        norms = torch.stack(torch._foreach_norm([gradient for _, gradient in gradients]))
        if not torch.isfinite(norms).all():
            self.stop(trainer, f"gradient of {gradients[int((~torch.isfinite(norms)).nonzero()[0])][0]}")

    def stop(self, trainer: Trainer, where: str) -> None:
        kept = getattr(trainer.checkpoint_callback, "best_model_path", "") or "none was written yet"
        raise UserError(
            f"stage {self.name}, step {trainer.global_step + 1}: the {where} is not a number; "
            f"lower the learning rate (last good checkpoint: {kept})"
        )


class ProgressBar(TQDMProgressBar):
    """Lightning's bar under the name of the stage."""

    def __init__(self, name: str):
        super().__init__(refresh_rate=5)
        self.name = name

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.name)
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.name)
