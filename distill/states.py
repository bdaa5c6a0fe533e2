"""States as things to join, part, keep and write down: what a fixed size makes possible.

A state is a FlexformerCache of one row or many. Nothing here changes one in place, and neither does a mixer.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from .flexformer.cache import CACHE, ExactLayer, FlexformerCache, StateLayer
from .flexformer.engine import NO_KEYS
from .flexformer.memory import Memory
from .flexformer.model import FlexformerForCausalLM


def like(state: FlexformerCache, found: Iterable[Memory], seen: int) -> FlexformerCache:
    """A state of the same layers that remembers something else; only of students without exact layers."""
    made = FlexformerCache([False] * len(state.memories))
    for layer, memory in zip(made.memories, found, strict=True):
        assert isinstance(layer, StateLayer)
        layer.memory, layer.seen, layer.is_initialized = memory, seen, True
    return made


@torch.no_grad()
def empty(student: FlexformerForCausalLM, batch: int) -> FlexformerCache:
    """What there is before the first token; only of students without exact layers.

    A token is read and forgotten, for only the model knows what shape its values have.
    """
    nought = torch.zeros(batch, 1, dtype=torch.long, device=student.device)
    read: FlexformerCache = getattr(student(input_ids=nought, use_cache=True), CACHE)
    nothing = [
        Memory(*(torch.full_like(part, NO_KEYS if name == "maximum" else 0) for name, part in each._asdict().items()))
        for each in memories(read)
    ]
    return like(read, nothing, 0)


def memories(state: FlexformerCache) -> list[Memory]:
    return [cast(Memory, cast(StateLayer, layer).memory) for layer in state.memories]


def joined(states: list[FlexformerCache]) -> FlexformerCache:
    """The rows of all, in order. Each has its own length: `seen` of the whole is the longest."""
    layers = zip(*(memories(state) for state in states), strict=True)
    found = [Memory(*(torch.cat(parts) for parts in zip(*rows, strict=True))) for rows in layers]
    return like(states[0], found, max(state.get_seq_length() for state in states))


def rows(state: FlexformerCache, kept: list[int]) -> FlexformerCache:
    """Some of the rows, copied, so that what the others take can be freed."""
    made = like(state, memories(state), state.get_seq_length())
    made.batch_select_indices(torch.tensor(kept))
    return made


def tensors(state: FlexformerCache) -> dict[str, Tensor]:
    """By layer and part, as a safetensors file takes them."""
    found: dict[str, Tensor] = {}
    for index, memory in enumerate(memories(state)):
        found |= {f"{index}.{name}": part.contiguous() for name, part in memory._asdict().items()}
    return found


def restored(found: Mapping[str, Tensor], empty: FlexformerCache, seen: int, device: torch.device) -> FlexformerCache:
    """From `tensors`; KeyError where a layer or part is missing."""
    layers = range(len(empty.memories))
    read = [Memory(*(found[f"{index}.{name}"].to(device) for name in Memory._fields)) for index in layers]
    return like(empty, read, seen)


def fixed_size(state: FlexformerCache) -> bool:
    """Whether no layer keeps keys and values, so that rows of different lengths stand in one batch."""
    return not any(isinstance(layer, ExactLayer) for layer in state.memories)
