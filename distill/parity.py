"""The gate before the hand-off: all ways through a student agree on its real weights, those that were saved, too."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data import Corpus
from .flexformer import engine
from .flexformer.cache import CACHE
from .flexformer.mixer import Mixer
from .flexformer.model import Flexformer
from .stages.fit import matmul_precision
from .task import Batch, Task

#: Tokens that are read beyond a window: over the ends of several chunks.
TOKENS = 96
#: What two ways may differ by at most: the root of the mean square of their difference, as a share of that of what they
#: differ about. float32 keeps seven digits, and a model of dozens of layers loses three.
MOST = 1e-3


class Apart(Exception):
    """Two ways through a student say different things: which, and by how much."""


@torch.no_grad()
def parity(student: Flexformer, folder: Path, corpus: Corpus, task: Task, device: torch.device) -> dict[str, float]:
    """How far the student's predictions, as it reads a text whole, are from those of other ways, in float32.

    reloaded: from `folder`, where it was saved. parallel: through N × N matrices. recurrent: token after token through
    the state, of a model that decodes. Apart where one is further than MOST, or not finite.
    """
    student.eval().to(device)
    domain = next(iter(corpus.validation))
    block, length = next(iter(corpus.evaluation(domain, 1, 1))), student.config.window + TOKENS
    batch = {name: each[..., :length].to(device) for name, each in block.items()}
    with matmul_precision("highest"):
        whole = task.predict(student, batch)
        found = {"reloaded": difference(reloaded(student, folder, batch, task), whole)}
        with in_parallel(student):
            found["parallel"] = difference(task.predict(student, batch), whole)
        if task.causal and decodes(student, batch["input_ids"]):
            found["recurrent"] = difference(recurrent(student, batch["input_ids"]), whole)
    # Not `>`, which nothing is that is no number.
    if far := {name: value for name, value in found.items() if not value <= MOST}:
        told = ", ".join(f"{name} by {value:.1e}" for name, value in far.items())
        raise Apart(f"its predictions differ from those of a text read whole: {told}, and {MOST:.0e} may be")
    return found


def difference(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other − its mean‖."""
    one, other = one.double(), other.double()
    return ((one - other).square().mean() / (other - other.mean()).square().mean().clamp(min=1e-30)).sqrt().item()


def reloaded(student: Flexformer, folder: Path, batch: Batch, task: Task) -> Tensor:
    """What the student says that was saved."""
    saved = type(student).from_pretrained(folder, dtype=torch.float32).eval().to(student.device)
    return task.predict(saved, batch)


def decodes(student: Any, ids: Tensor) -> bool:
    """Whether this release of transformers hands the base model's attention its state."""
    return getattr(student(input_ids=ids[:, :1]), CACHE) is not None


def recurrent(student: Any, ids: Tensor) -> Tensor:
    """Logits (B, N, V), a token at a time."""
    cache, said = None, []
    for token in ids.split(1, 1):
        out = student(input_ids=token, cache=cache, use_cache=True)
        cache = getattr(out, CACHE)
        said.append(out.logits)
    return torch.cat(said, 1)


@contextmanager
def in_parallel(student: Flexformer) -> Iterator[None]:
    """The student with its mixers going through N × N inside the block; those that have no other way stay."""
    own = {module: module.mixer for module in student.lm.modules() if isinstance(getattr(module, "mixer", None), Mixer)}
    for module, mixer in own.items():
        # Shallow: the weights stay the mixer's own.
        module.mixer = copy.copy(mixer)
        path = mixer.ways.parallel if mixer.causal else partial(engine.parallel, causal=False)
        module.mixer.forward = partial(mixer.forward, path=path)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, mixer in own.items():
            module.mixer = mixer
