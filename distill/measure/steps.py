"""One step of decoding at some length, as a server takes it: what is kept stays in its place, and nothing is copied.

Both sides are as strong as they get. The teacher's cache has its full size from the start, so that a step writes one
key and value and attends to all, with no mask, and every step has the shapes of the one before: cuDNN's attention
plans anew for each that it has not seen. The student's state is overwritten.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ..flexformer.cache import CACHE, ExactLayer, StateLayer

#: Something to be timed.
Step = Callable[[], Any]
#: Tokens that a student has read, at most: a state is the same size after any number of them.
READ = 128


class FixedLayer(CacheLayerMixin):
    """Of `length` tokens before, those that are kept, and the one that comes: keys and values (B, K, kept + 1, D)."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, length: int | None = None):
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.length = keys.shape[2] - 1 if length is None else length
        self.last = torch.tensor([keys.shape[2] - 1], device=keys.device)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        # By index: what is written to a slice the compiler makes a copy of all for.
        self.keys.index_copy_(2, self.last, key_states)
        self.values.index_copy_(2, self.last, value_states)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        assert self.keys is not None
        return self.keys.shape[2], self.length + 1 - self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


def full(layer: Any, length: int) -> FixedLayer:
    """A layer like this one, of `length` tokens: how long a step takes does not depend on which. With a sliding window
    it keeps no more than can be seen again."""
    kept = min(length, layer.sliding_window - 1) if getattr(layer, "is_sliding", False) else length

    def drawn(part: Tensor) -> Tensor:
        return torch.randn(*part.shape[:2], kept + 1, part.shape[3], dtype=part.dtype, device=part.device)

    return FixedLayer(drawn(layer.keys), drawn(layer.values), length)


def teacher_step(teacher: Any, batch: int, length: int) -> tuple[Step, int]:
    """A step of the exact model after `length` tokens a row, and the bytes it keeps."""
    small = getattr(teacher(input_ids=tokens(teacher, batch, 1), use_cache=True), CACHE)
    layers: list[Any] = [full(layer, length) for layer in small.layers]
    cache, ids, places = Cache(layers=layers), tokens(teacher, batch, 1), at(teacher, batch, length)

    def step() -> Any:
        return teacher(input_ids=ids, position_ids=places, use_cache=True, **{CACHE: cache})

    return step, sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def student_step(student: Any, batch: int, length: int) -> tuple[Step, int]:
    """A step of the student after `length` tokens a row, and the bytes it keeps."""
    read = min(READ, length)
    cache: Any = getattr(student(input_ids=tokens(student, batch, read), use_cache=True), CACHE)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, ExactLayer):
            cache.layers[index] = cache.memories[index] = full(layer, length)
    states: list[tuple[Any, Any]] = [(layer, layer.memory) for layer in cache.layers if isinstance(layer, StateLayer)]
    ids, places = tokens(student, batch, 1), at(student, batch, length)
    old = [kept for _, kept in states]

    def step() -> Any:
        for layer, kept in states:
            # A number that grew would be compiled anew.
            layer.memory, layer.seen = kept, read
        out = student(input_ids=ids, position_ids=places, cache=cache, use_cache=True)
        new = [layer.memory for layer, _ in states]
        for part, after in zip(zip(*old, strict=True), zip(*new, strict=True), strict=True):
            # Of all layers at once: one after another would take longer than the copy does.
            torch._foreach_copy_(list(part), list(after))
        return out

    exact: list[Any] = [layer for layer in cache.layers if isinstance(layer, FixedLayer)]
    kept_bytes = sum(part.nbytes for _, memory in states for part in memory)
    return step, kept_bytes + sum(layer.keys.nbytes + layer.values.nbytes for layer in exact)


def tokens(model: Any, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(model.device)


def at(model: Any, batch: int, length: int) -> Tensor:
    return torch.full((batch, 1), length, device=model.device)


#: What makes a step, by whose it is.
STEP_OF: dict[str, Callable[[Any, int, int], tuple[Step, int]]] = {"teacher": teacher_step, "student": student_step}
WHO = tuple(STEP_OF)
