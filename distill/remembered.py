"""What a teacher predicts, kept on disk: stage 2 reads it again instead of running the teacher again."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

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

    Several runs may share a file: it is named after the teacher's weights and configuration, after `how` it is run
    (whatever else decides over its predictions), and after k. 8 k bytes a token. UserError where the file cannot be
    used.
    """

    def __init__(self, teacher: Teacher, folder: Path, k: int, how: str):
        self.teacher, self.k = teacher, min(k, teacher.model.config.vocab_size)
        said = (teacher.weights_hash(), teacher.model.config.to_json_string(), how)
        name = blake2b("\n".join(said).encode(), digest_size=12).hexdigest()
        self.file = folder.expanduser() / f"{name}-{self.k}.sqlite"
        with self._told():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.store = sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None)
        with self._told(), self._alone():
            self.store.execute("CREATE TABLE IF NOT EXISTS rows (tokens BLOB PRIMARY KEY, likeliest BLOB)")

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log p of the k likeliest next tokens after every token, and which these are: (B, N, k) both, 0 at padding."""
        ids = batch["input_ids"]
        real = batch.get("attention_mask", torch.ones_like(ids)) != 0
        keys = [blake2b(row[kept].cpu().numpy().tobytes()).digest() for row, kept in zip(ids, real, strict=True)]
        found = self._look_up(keys)
        if lacking := [place for place, key in enumerate(keys) if key not in found]:
            said = self._ask({name: each[lacking] for name, each in batch.items()}, real[lacking])
            new = dict(zip((keys[place] for place in lacking), said, strict=True))
            found |= new
            self._keep(new)
        log_likeliest = torch.zeros(*ids.shape, self.k, dtype=torch.float32)
        tokens = torch.zeros(*ids.shape, self.k, dtype=torch.long)
        for place, (key, kept) in enumerate(zip(keys, real.cpu(), strict=True)):
            chances, which = numpy.frombuffer(found[key], numpy.int32).reshape(2, -1, self.k).copy()
            log_likeliest[place, kept] = torch.from_numpy(chances.view(numpy.float32))
            tokens[place, kept] = torch.from_numpy(which).long()
        return log_likeliest.to(ids.device), tokens.to(ids.device)

    def _look_up(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """Of the rows that are known: log p and then the tokens, 4 bytes each."""
        places = ", ".join("?" * len(keys))
        with self._told():
            return dict(self.store.execute(f"SELECT tokens, likeliest FROM rows WHERE tokens IN ({places})", keys))

    def _keep(self, new: dict[bytes, bytes]) -> None:
        with self._told(), self._alone():
            # Another run may have been faster.
            self.store.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", list(new.items()))

    @torch.no_grad()
    def _ask(self, batch: Batch, real: Tensor) -> list[bytes]:
        self.teacher.to(batch["input_ids"].device)
        log_likeliest, tokens = log_softmax(self.teacher.predict(batch), 1.0).topk(self.k)
        both = zip(log_likeliest.float(), tokens.int(), real, strict=True)
        return [b"".join(each[kept].cpu().numpy().tobytes() for each in parts) for *parts, kept in both]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Writes at once or not at all, after other runs that write."""
        self.store.execute("BEGIN IMMEDIATE")
        yield
        self.store.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system and the database raise, as one line."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            cure = "remove it, make room, or set stages.logits.cache to another folder"
            raise UserError(f"stages.logits.cache: {self.file} cannot be used, {error}; {cure}") from error
