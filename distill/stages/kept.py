"""Checkpoints of a stage that was not finished: whole, vouched for by a hash, and with all that it goes on from."""

import re
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from .. import ranks
from ..data import Corpus
from ..launch import AT_ONCE
from ..progress import chance, take_chance
from ..task import Batch
from ..whole import vouch, vouched, voucher, whole

#: Checkpoints of a stage that are kept, so that there is one where another is damaged.
KEPT = 2
#: How urgent it is that it is time to keep what there is; signals are more, by their numbers.
LATE = 1
#: What a checkpoint is called after its stage.
STEP = r"-step=(\d+)\.ckpt"


class CheckedIO(TorchCheckpointIO):
    """Writes NAME.ckpt, and NAME.ckpt.sha256 that vouches for it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            torch.save(checkpoint, file)
            vouch(path, file)

    def remove_checkpoint(self, path: Any) -> None:
        voucher(Path(path)).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def newest(folder: Path, name: str, steps: int) -> tuple[Path | None, int]:
    """A stage's last good checkpoint and its step, None and 0 where there is none; a warning names those that are not
    what was written.

    That of the last of its `steps` does not count: from there nothing would be done, and chance not taken up again.
    """
    for step, path in found(folder, name):
        if step >= steps:
            continue
        if vouched(path):
            return path, step
    return None, 0


def found(folder: Path, name: str) -> list[tuple[int, Path]]:
    """A stage's checkpoints by their steps, the newest first."""
    called = re.compile(re.escape(name) + STEP)
    there = {int(said[1]): path for path in folder.glob("*.ckpt") if (said := called.fullmatch(path.name))}
    return sorted(there.items(), reverse=True)


class Batches:
    """A stage's batches, all of them or those from the one on that it goes on with."""

    def __init__(self, corpus: Corpus, steps: int, batch_size: int, seed: int, first: int = 0):
        self.loader, self.steps, self.first = corpus.batches(steps, batch_size, seed), steps, first

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        # Read and left out, since the chance in a batch is that of all before it, too.
        return islice(self.loader, self.first, None)

    def state_dict(self) -> dict[str, int]:
        """Nothing that the number of a step does not say."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `state_dict`."""


class Keep(Callback):
    """Keeps the newest states of a stage: every quarter of it, once so many minutes are over, and where Ctrl-C asks a
    run to end, or SIGTERM, as clusters do before they kill it; then it leaves, but from the last step, of which there
    has to be a record. A second Ctrl-C does not wait, unless it comes AT_ONCE.

    asked: the number of the signal, 0 while there is none.

    Processes hear of it at different times and leave after the same step. Lightning's own answer to SIGTERM, which ends
    with the stage, has one speak to all from within the signal, whatever they are about.
    """

    def __init__(self, name: str, folder: Path, steps: int, minutes: float):
        self.name, self.folder, self.steps, self.seconds = name, folder, steps, 60 * minutes
        self.quarter, self.asked, self.noted = max(1, steps // 4), 0, 0.0
        self.before: Any = None

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.last = time.monotonic()
        signal.signal(signal.SIGTERM, self.note)
        self.before = signal.signal(signal.SIGINT, self.note)

    def note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self.noted >= AT_ONCE:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.noted = number, now

    def stop(self) -> None:
        """Ctrl-C is again what it was; SIGTERM is Lightning's affair."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        step = trainer.global_step
        # Gradients that are not yet those of a step are in no checkpoint.
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        late = time.monotonic() - self.last >= self.seconds
        urgency = ranks.most(self.asked or LATE * late) if step < self.steps else 0
        if urgency or step % self.quarter == 0:
            self.keep(trainer, step)
        if urgency > LATE:
            self.asked = urgency
            raise SIGTERMException

    def keep(self, trainer: Trainer, step: int) -> None:
        trainer.save_checkpoint(self.folder / f"{self.name}-step={step}.ckpt")
        for _, old in found(self.folder, self.name)[KEPT:]:
            trainer.strategy.remove_checkpoint(old)
        self.last = time.monotonic()


class Chance(Callback):
    """Keeps with a checkpoint where all generators stand, and has them go on from there.

    begin: where they go on without one, whatever Lightning does to them before.
    """

    def __init__(self, begin: dict[str, Any]):
        self.found = begin

    def state_dict(self) -> dict[str, Any]:
        return chance()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = state_dict

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        take_chance(self.found)
