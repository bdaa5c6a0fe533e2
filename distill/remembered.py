"""What a teacher predicts, kept on disk: stage 2 reads it again instead of running the teacher again."""

import sqlite3
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .divergence import log_softmax
from .errors import UserError
from .task import Batch
from .teacher import Teacher

#: How long one run waits for another that writes to the same file, in seconds.
PATIENCE = 60


class Remembered:
    """The k likeliest next tokens of every row of tokens, from a file in `folder`; what it lacks the teacher adds.

    Several runs may share a file: it is named after the teacher's weights, the precision it ran in, and k. 8 k bytes a
    token. UserError where the folder cannot be written.
    """

    def __init__(self, teacher: Teacher, folder: Path, k: int, precision: str):
        self.teacher, self.k = teacher, min(k, teacher.model.config.vocab_size)
        self.file = folder.expanduser() / f"{teacher.weights_hash()[:16]}-{precision}-{self.k}.sqlite"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.store = sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None)
            self.store.execute("PRAGMA journal_mode=WAL")
            self.store.execute("CREATE TABLE IF NOT EXISTS rows (tokens BLOB PRIMARY KEY, likeliest BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"stages.logits.cache={folder} cannot be used: {error}; choose another folder") from error

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log p of the k likeliest next tokens after every token, and which these are: (B, N, k) both, 0 at padding."""
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids)) != 0
        keys = [blake2b(row[kept].cpu().numpy().tobytes()).digest() for row, kept in zip(ids, real, strict=True)]
        if lacking := [place for place, key in enumerate(keys) if self._look_up(key) is None]:
            rows = {name: each[lacking] for name, each in batch.items()}
            self._add([keys[place] for place in lacking], rows, real[lacking])
        log_likeliest = torch.zeros(*ids.shape, self.k)
        tokens = torch.zeros(*ids.shape, self.k, dtype=torch.long)
        for place, (key, kept) in enumerate(zip(keys, real.cpu(), strict=True)):
            chances, which = numpy.frombuffer(self._look_up(key), numpy.int32).reshape(2, -1, self.k).copy()
            log_likeliest[place, kept] = torch.from_numpy(chances.view(numpy.float32))
            tokens[place, kept] = torch.from_numpy(which).long()
        return log_likeliest.to(ids.device), tokens.to(ids.device)

    def _look_up(self, key: bytes) -> Any:
        """log p and then the tokens of a row, 4 bytes each; None where there is no such row."""
        found = self.store.execute("SELECT likeliest FROM rows WHERE tokens = ?", (key,)).fetchone()
        return None if found is None else found[0]

    @torch.no_grad()
    def _add(self, keys: list[bytes], batch: Batch, real: Tensor) -> None:
        self.teacher.to(batch["input_ids"].device)
        log_likeliest, tokens = log_softmax(self.teacher.predict(batch), 1.0).topk(self.k)
        for place, (key, kept) in enumerate(zip(keys, real, strict=True)):
            parts = (log_likeliest[place, kept], tokens[place, kept].int())
            blob = b"".join(part.cpu().numpy().tobytes() for part in parts)
            try:
                self.store.execute("INSERT OR IGNORE INTO rows VALUES (?, ?)", (key, blob))
            except sqlite3.Error as error:
                raise UserError(f"{self.file}: {error}; make room or set stages.logits.cache elsewhere") from error
