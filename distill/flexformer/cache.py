"""The cache that `generate` carries: one fixed-size memory per swapped layer, keys and values for one kept exact."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .memory import Memory

#: What a model is given its cache as, and what it is called in what comes out: until transformers 5.24 otherwise.
CACHE = "cache" if "cache" in {each.name for each in fields(CausalLMOutputWithPast)} else "past_key_values"


class StateLayer(CacheLayerMixin):
    """What one layer's mixer remembers, its sums in float32, and how many tokens went into it."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.memory: Memory | None = None
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Counts the new tokens and hands them on: the mixer itself folds them into the state.

        The keys say whose they are: some releases keep GPT-2's attention from further arguments.
        """
        self.is_initialized = True
        self.seen += key_states.shape[-2]
        key_states.flexformer_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_seq_length(self, *args: Any) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        # Before transformers 5.6 the argument is the tensor of cache positions.
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.seen + new, 0

    def get_max_length(self) -> int:
        return -1

    # The name of the same in transformers 5.0 to 5.12.
    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.memory, self.seen = None, 0

    def _select(self, indices: Tensor) -> None:
        if self.memory is not None:
            self.memory = Memory(*(part.index_select(0, indices.to(part.device)) for part in self.memory))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.memory is not None:
            self.memory = Memory(*(part.repeat_interleave(repeats, 0) for part in self.memory))

    def crop(self, max_length: int) -> None:
        raise ValueError("a linear-attention state cannot be cropped: what went into it cannot be taken out again")

    def offload(self) -> None:
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        raise ValueError("a linear-attention state is small and is not offloaded")

    def _move(self, device: torch.device) -> None:
        if self.memory is not None:
            self.memory = Memory(*(part.to(device) for part in self.memory))

    @property
    def nbytes(self) -> int:
        return 0 if self.memory is None else sum(part.nbytes for part in self.memory)


class ExactLayer(DynamicLayer):
    """The keys and values of a layer that is kept softmax."""

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


class FlexformerCache(Cache):
    """The memories of all layers; only those of exact layers grow with the number of tokens seen."""

    def __init__(self, exact: list[bool]):
        self.memories: list[StateLayer | ExactLayer] = [ExactLayer() if kept else StateLayer() for kept in exact]
        super().__init__(layers=list(self.memories))

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.memories)

    @property
    def reached(self) -> bool:
        """Whether every swapped layer has been given something to remember."""
        return all(layer.memory is not None for layer in self.memories if isinstance(layer, StateLayer))

    @property
    def state_bytes(self) -> int:
        """Bytes held by the swapped layers, at any length."""
        return sum(layer.nbytes for layer in self.memories if isinstance(layer, StateLayer))
