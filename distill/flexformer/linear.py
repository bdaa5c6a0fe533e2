"""Whole texts through a layer's mixer by kernels, where there are some: on a GPU, of positive feature maps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attempt import attempt, possible, roomy
from .engine import CHUNK
from .levels import fused, leveled, levels
from .memory import Memory
from .normaliser import RowSum
from .parameters import apart, parameters, zeros
from .precision import MODES

try:
    from .linear_gradients import key_gradient_kernel, later_kernel, query_gradient_kernel
    from .linear_kernels import output_kernel, scan_kernel, sums_kernel
    from .tiles import block, cdiv, placed

    built = True
except (ImportError, OSError):  # No Triton for this machine, or no source for it to read: PyTorch does it.
    built = False

#: Of a scan, numbers and chunks that are held at a time.
SCANNED, AT_ONCE = 512, 16
#: A tile is no narrower: of narrower ones in shared memory the assembler of CUDA 12.8, which Triton 3.6 has with it,
#: makes some addresses wrong, that of 12.9 none.
LEAST = 64
#: The most features and the widest heads, and how many numbers a tile of both may have, that fit into a multiprocessor.
MOST, DEEPEST, LARGEST = 256, 128, 16384
#: Of features that are given, what has been held to float64 on a GPU.
MOST_GIVEN, DEEPEST_GIVEN = 128, 64
#: Warps: as few as have registers for a tile of so many numbers, since more make the same twice.
FEW, MANY, SMALL = 4, 8, 8192
#: What the kernels are for.
WHAT = "linear attention"


def has_kernels(mixer: Any, query: Tensor, value: Tensor, memory: Memory | None = None) -> bool:
    """Whether there are kernels for `mixer`, a Mixer with all its parts: of positive maps, without decay.

    Only where products are of bfloat16, since those of float32 do not fit into registers; and not with gradients where
    a text goes on from a memory, which they do not go back to.
    """
    return (
        built
        and possible(WHAT)
        and query.is_cuda
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and query.dtype != torch.float64
        and mode(query) == "bf16"
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
    with torch.cuda.device_of(query):
        return attempt(WHAT, lambda: launched(mixer, query, key, value, scaling, padding, memory))


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
    out, sums, maximum = Attention.apply(*inputs, *given, present, before, sizes)
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


class Sizes(NamedTuple):
    """Tokens of the window, how far the key weight's polynomial goes, ε, the root of softmax's scaling, and whether
    features are given."""

    width: int
    degree: int
    epsilon: float
    scale: float
    given: bool


class Attention(torch.autograd.Function):
    """→ o (B, H, N, V) and the state after the last token, which no gradient goes through."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, present, before, sizes = rest
        query, key, value = (in_pieces(each) for each in (query, key, value))
        given[0], given[2] = (each.to(query.dtype) for each in (given[0], given[2]))
        batch, heads, length, head_dim = query.shape
        kv_heads, width, features = key.shape[1], value.shape[-1], given[0].shape[-1 if sizes.given else -2]
        chunks, places = cdiv(length, CHUNK), batch * kv_heads
        settings = constants(query, sizes, features, head_dim, width)
        settings |= {"SKIP": 0 if before else sizes.width, "PADDED": present is not None}
        grouped = settings | {"G": heads // kv_heads}
        end = length, kv_heads, chunks
        # In the place of what there is not stands something that is not read.
        present = query if present is None else present.contiguous()

        wide = query.new_empty(0, dtype=torch.float32)
        states = query.new_empty(places, chunks, features * (width + 1))
        peaks, tops = wide.new_empty(places, chunks), wide.new_empty(places, chunks + 1)
        after, last = wide.new_empty(batch, kv_heads, features, width + 1), wide.new_empty(batch, kv_heads, 1)
        sums_kernel[(chunks, places)](
            placed(key),
            placed(value),
            present,
            *given[2:6],
            states,
            peaks,
            sizes.scale,
            *end,
            DEGREE=sizes.degree,
            **settings,
        )
        started = [each.contiguous() for each in before or (after, last)]
        scan(states, settings, tops, peaks, *started, after, last, goes_on=before is not None)
        out = by_tokens(query, width)
        joined, totals = wide.new_empty(batch, heads, length), wide.new_empty(batch, heads, length)
        output_kernel[(chunks, batch * heads)](
            *map(placed, (query, key, value)), present, *given, states, tops, placed(out), joined, totals,
            sizes.scale, sizes.epsilon, *end, DEGREE=sizes.degree, **grouped,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, present, *given, states, tops, joined, totals, out)
        ctx.sizes, ctx.grouped, ctx.end = sizes, grouped, end
        ctx.mark_non_differentiable(after, last)
        return out, after, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor, *_: Any) -> Any:
        query, key, value, present, *given, states, tops, joined, totals, out = ctx.saved_tensors
        sizes, grouped, end = ctx.sizes, ctx.grouped, ctx.end
        length, _, chunks = end
        rows, places = query.shape[0] * query.shape[1], len(tops)
        # Of the queries that share a key, one at a time.
        alone = grouped if grouped["G"] == 1 else grouped | {"num_stages": 1}
        by_query, by_key, by_value = (by_tokens(each, each.shape[-1]) for each in (query, key, value))
        inputs, given_back = [placed(each) for each in (query, key, value)], placed(in_pieces(asked))
        if sizes.given:
            # Of keys that are in the window to the end nothing is written.
            by = [torch.zeros_like(each) for each in given]
        else:
            filled, by = zeros(given)
        inner, later = torch.empty_like(joined), torch.empty_like(states)
        after = sizes.scale, sizes.epsilon, *end
        with torch.cuda.device_of(query):
            query_gradient_kernel[(chunks, rows)](
                *inputs, present, *given, states, tops, joined, totals, placed(out), given_back,
                placed(by_query), *by[:2], *by[6:], inner, *after, DEGREE=sizes.degree, **grouped,
            )  # fmt: skip
            fewer = {name: each for name, each in alone.items() if name not in ("SKIP", "PADDED")}
            later_kernel[(chunks, places)](
                inputs[0], given_back, *given[:2], *given[6:], tops, joined, totals, inner, later, *after, **fewer
            )
            scan(later, grouped, tops)
            keys = length + sizes.width - grouped["SKIP"] // CHUNK * CHUNK
            key_gradient_kernel[(cdiv(keys, CHUNK), places)](
                *inputs, present, *given, later, tops, joined, totals, inner, given_back,
                placed(by_key), placed(by_value), *by[2:6], *after, DEGREE=sizes.degree, **alone,
            )  # fmt: skip
        if not sizes.given:
            # As the parameters are, all at once: for each by itself it would be another launch.
            by = apart(filled.to(given[1].dtype), given)
        return by_query, by_key, by_value, *by, None, None, None


def in_pieces(x: Tensor) -> Tensor:
    """As it is, where the numbers of a token of a head lie side by side: as projections leave them, too."""
    return x if x.stride(-1) == 1 else x.contiguous()


def by_tokens(like: Tensor, width: int) -> Tensor:
    """Room for (B, H, N, width), all heads of a token side by side: as the next projection takes them."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def scan(states: Tensor, settings: dict[str, Any], tops: Tensor, *forwards: Tensor, goes_on: bool = False) -> None:
    """In place: of all chunks before each, and, without what is only needed for that, after each: see `scan_kernel`."""
    places, chunks, numbers = states.shape
    # In the place of what is not read stands something.
    scan_kernel[(cdiv(numbers, SCANNED), places)](
        states, tops, *(forwards or [tops] * 5), chunks, F=settings["F"], V=settings["V"],
        MODE="tf32x3" if settings["MODE"] == "tf32x3" else "tf32", REVERSE=not forwards, GOES_ON=goes_on,
        BLOCK=SCANNED, ROWS=AT_ONCE,
    )  # fmt: skip


def constants(query: Tensor, sizes: Sizes, features: int, head_dim: int, width: int) -> dict[str, Any]:
    """What all kernels are built for."""
    tiles = {"F": features, "D": head_dim, "V": width}
    most = max(features, CHUNK) * max(head_dim, width, CHUNK)
    return tiles | {
        **{f"BLOCK_{of}": max(LEAST, block(size)) for of, size in tiles.items()},
        "W": sizes.width,
        "GIVEN": sizes.given,
        "MODE": mode(query),
        "C": CHUNK,
        "num_warps": FEW if most <= SMALL else MANY,
    }


def mode(query: Tensor) -> str:
    """How products are made: as precise as what comes in, and as PyTorch is told to be."""
    return MODES[torch.get_float32_matmul_precision()] if query.dtype == torch.float32 else "bf16"


def fits(features: int, width: int, made: bool) -> bool:
    """Whether tiles of so many features, and of heads as wide, do into a multiprocessor; made: by kernels."""
    most, deepest = (MOST, DEEPEST) if made else (MOST_GIVEN, DEEPEST_GIVEN)
    return features <= most and width <= deepest and block(features) * block(width) <= LARGEST


def held_type(query: Tensor) -> torch.dtype:
    """Of what products are made of: queries, keys and values, frequencies, and chunks' sums."""
    return torch.bfloat16 if mode(query) == "bf16" else torch.float32
