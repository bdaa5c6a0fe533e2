"""Whole texts through a layer's mixer by kernels, where there are some: on a GPU, of positive feature maps."""

from typing import Any

import torch
from torch import Tensor

from .attempt import LINEAR, attempt, exported, possible, roomy
from .levels import fused, leveled, levels
from .memory import Memory
from .normaliser import RowSum
from .parameters import parameters
from .precision import held_type, mode

try:
    from .linear_function import Attention
    from .linear_layout import Sizes
    from .linear_operator import attention as operator

    built = True
except (ImportError, OSError):  # No Triton for this machine, or no source for it to read: PyTorch does it.
    built = False

#: The most features and the widest heads.
MOST, DEEPEST = 256, 128
#: Texts' heads, of which each has a row of programs: no more rows can be launched.
ROWS = 65535
#: Of features that are given, what has been held to float64 on a GPU: all in one tile.
MOST_GIVEN, DEEPEST_GIVEN = 128, 64


def has_kernels(mixer: Any, query: Tensor, value: Tensor, memory: Memory | None = None) -> bool:
    """Whether there are kernels for `mixer`, a Mixer with all its parts: of positive maps, without decay.

    Only where products are of bfloat16, since those of float32 do not fit into registers; and not with gradients where
    a text goes on from a memory, which they do not go back to.
    """
    return (
        built
        and possible(LINEAR)
        and query.is_cuda
        and not exported()
        and query.dtype != torch.float64
        and mode(query) == "bf16"
        and 0 < query.shape[0] * query.shape[1] <= ROWS
        and roomy(query.device)
        and not (memory is not None and torch.is_grad_enabled())
        and mixer.causal
        and mixer.parts >= {"linear", "window"}
        and leveled(mixer)
        and mixer.map.coarse
        and type(mixer.normaliser) is RowSum
        and fits(mixer.feature_dim, max(query.shape[-1], value.shape[-1]), fused(mixer))
    )


def through_kernels(
    mixer: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, padding: Tensor | None, memory: Memory | None
) -> tuple[Tensor, Memory] | None:
    """What `Mixer.forward` does with q (B, H, N, D), k and v (B, K, N, D). None where the kernels cannot be built."""
    if torch.compiler.is_compiling():
        # An operator of what the compiler captures, which it neither looks into nor can go on without.
        return launched(mixer, query, key, value, scaling, padding, memory)
    return attempt(LINEAR, lambda: launched(mixer, query, key, value, scaling, padding, memory))


def launched(
    mixer: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, padding: Tensor | None, memory: Memory | None
) -> tuple[Tensor, Memory]:
    real = None if padding is None else padding != 0
    keys, values, present = key, value, real
    if memory is not None:
        real = key.new_ones(len(key), key.shape[2], dtype=torch.bool) if real is None else real
        present = torch.cat([memory.present, real], 1)
        if mixer.width:
            keys, values = torch.cat([memory.keys, key], 2), torch.cat([memory.values, value], 2)
    sizes = Sizes(mixer.width, len(mixer.key_weight.coefficients), mixer.map.epsilon, scaling**0.5, not fused(mixer))
    # As products take them, once and not in every chunk.
    held = held_type(query)
    before = None if memory is None else (memory.sums, memory.maximum)
    given = told(mixer, query, keys, scaling, present, memory) if sizes.given else parameters(mixer)
    inputs = (each.to(held) for each in (query, keys, values))
    attention = operator if torch.compiler.is_compiling() else Attention.apply
    out, sums, maximum = attention(*inputs, *given, present, before, sizes)
    return out.to(value.dtype), Memory(sums, maximum, *recent(mixer.width, keys, values, real, present, memory))


def told(
    mixer: Any, query: Tensor, keys: Tensor, scaling: float, present: Tensor | None, memory: Memory | None
) -> tuple[Tensor, ...]:
    """What the kernels take in the place of parameters, see `levels`."""
    if present is None:
        present = keys.new_ones(len(keys), keys.shape[2], dtype=torch.bool)
    position = present.cumsum(1) - 1
    if memory is not None:
        position = position + (memory.seen - memory.present.sum(1))[:, None]
    with torch.autocast(query.device.type, enabled=False):
        found, held = levels(mixer, query, keys, scaling, present, position), held_type(query)
    return found._replace(query=found.query.to(held), key=found.key.to(held)).in_place()


def recent(
    width: int, keys: Tensor, values: Tensor, real: Tensor | None, present: Tensor | None, memory: Memory | None
) -> tuple[Tensor, ...]:
    """How many tokens there were, and of the last `width` keys, values and which of them are none: see `Memory`."""
    batch, length = len(keys), keys.shape[2]
    first = max(length - width, 0)
    read = keys.new_full((batch,), length, dtype=torch.long) if real is None else real.sum(1)
    # Cloned, or a window would keep all tokens in memory.
    window = [each[:, :, first:].clone(memory_format=torch.contiguous_format) for each in (keys, values)]
    there = keys.new_ones(batch, length - first, dtype=torch.bool) if present is None else present[:, first:].clone()
    if lacking := width - (length - first):
        window = [torch.nn.functional.pad(each, (0, 0, lacking, 0)) for each in window]
        there = torch.nn.functional.pad(there, (lacking, 0))
    return read if memory is None else memory.seen + read, *window, there


def fits(features: int, width: int, made: bool) -> bool:
    """Whether there are kernels for so many features, and for heads as wide; made: by kernels."""
    most, deepest = (MOST, DEEPEST) if made else (MOST_GIVEN, DEEPEST_GIVEN)
    return features <= most and width <= deepest
