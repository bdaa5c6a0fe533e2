"""Whole texts through a layer's mixer by kernels, where there are some: on a GPU, of exponential features."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attempt import attempt, possible, roomy
from .decay import NoDecay
from .engine import CHUNK
from .exponential import Exponential
from .memory import Memory
from .normaliser import RowSum
from .parameters import parameters
from .precision import MODES

try:
    from .linear_gradients import key_gradient_kernel, later_kernel, query_gradient_kernel
    from .linear_kernels import output_kernel, scan_kernel, sums_kernel
    from .tiles import block, cdiv

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
#: Warps: as few as have registers for a tile of so many numbers, since more make the same twice.
FEW, MANY, SMALL = 4, 8, 8192
#: What the kernels are for.
WHAT = "linear attention"


def has_kernels(mixer: Any, query: Tensor, value: Tensor, memory: Memory | None = None) -> bool:
    """Whether there are kernels for `mixer`, a Mixer with all its parts: exponential features without decay.

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
        and type(mixer.map) is Exponential
        and type(mixer.decay) is NoDecay
        and type(mixer.normaliser) is RowSum
        and fits(mixer.feature_dim, max(query.shape[-1], value.shape[-1]))
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
    old = memory or mixer.no_memory(key, value)
    real = key.new_ones(len(key), key.shape[2], dtype=torch.bool) if padding is None else padding != 0
    keys, values = (torch.cat(both, 2) if mixer.width else both[1] for both in ((old.keys, key), (old.values, value)))
    present = torch.cat([old.present, real], 1)
    sizes = Sizes(mixer.width, len(mixer.key_weight.coefficients), mixer.map.epsilon, scaling**0.5)
    # As products take them, once and not in every chunk.
    held = (each.to(held_type(query)) for each in (query, keys, values))
    out, sums, maximum = Attention.apply(*held, *parameters(mixer), present, old.sums, old.maximum, sizes)
    recent = slice(key.shape[2], None)
    window = (keys[:, :, recent].clone(), values[:, :, recent].clone(), present[:, recent].clone())
    return out.to(value.dtype), Memory(sums, maximum, old.seen + real.sum(1), *window)


class Sizes(NamedTuple):
    """Tokens of the window, how far the key weight's polynomial goes, ε, and the root of softmax's scaling."""

    width: int
    degree: int
    epsilon: float
    scale: float


class Attention(torch.autograd.Function):
    """→ o (B, H, N, V) and the state after the last token, which no gradient goes through."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, present, sums, maximum, sizes = rest
        query, key, value = (each.contiguous() for each in (query, key, value))
        given[0], given[2] = (each.to(query.dtype) for each in (given[0], given[2]))
        present = present.contiguous()
        batch, heads, length, head_dim = query.shape
        kv_heads, width, features = key.shape[1], value.shape[-1], given[0].shape[-2]
        chunks, places, numbers = cdiv(length, CHUNK), batch * kv_heads, features * (width + 1)
        shared = constants(query, sizes, features, head_dim, width)
        grouped = shared | {"G": heads // kv_heads}
        end = length, kv_heads, chunks

        wide = query.new_empty(0, dtype=torch.float32)
        states = query.new_empty(places, chunks, numbers, dtype=query.dtype)
        peaks = wide.new_empty(places, chunks)
        sums_kernel[(chunks, places)](
            key, value, present, *given[2:6], states, peaks, sizes.scale, *end, DEGREE=sizes.degree, **shared
        )
        tops = torch.cat([maximum.reshape(places, 1), peaks], 1).cummax(1).values
        running = torch.cat([sums[..., :-1].reshape(places, -1), sums[..., -1].reshape(places, -1)], 1)
        scan(states, running, peaks, tops, reverse=False)
        out = value.new_empty(batch, heads, length, width)
        joined, totals = wide.new_empty(batch, heads, length), wide.new_empty(batch, heads, length)
        output_kernel[(chunks, batch * heads)](
            query, key, value, present, *given, states, tops, out, joined, totals, sizes.scale, sizes.epsilon,
            *end, DEGREE=sizes.degree, **grouped,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, present, *given, states, tops, joined, totals, out)
        ctx.sizes, ctx.grouped, ctx.end = sizes, grouped, end
        table, ones = running.split([features * width, features], 1)
        after = torch.cat([table.unflatten(1, (features, width)), ones[..., None]], -1).view_as(sums)
        last = tops[:, -1].reshape(maximum.shape).clone()
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
        asked = asked.contiguous()
        by_query, by_key, by_value = (torch.empty_like(each) for each in (query, key, value))
        by = [torch.zeros_like(each, dtype=torch.float32) for each in given]
        inner = torch.empty_like(joined)
        after = sizes.scale, sizes.epsilon, *end
        with torch.cuda.device_of(query):
            query_gradient_kernel[(chunks, rows)](
                query, key, value, present, *given, states, tops, joined, totals, out, asked,
                by_query, *by[:2], *by[6:], inner, *after, DEGREE=sizes.degree, **grouped,
            )  # fmt: skip
            later = torch.empty_like(states)
            later_kernel[(chunks, places)](
                query, asked, *given[:2], *given[6:], tops, joined, totals, inner, later, *after, **alone
            )
            turned = -tops.flip(1)
            nothing = later.new_zeros(places, later.shape[-1], dtype=torch.float32)
            scan(later, nothing, turned[:, 1:].contiguous(), turned, reverse=True)
            key_gradient_kernel[(cdiv(length + sizes.width, CHUNK), places)](
                query, key, value, present, *given, later, tops, joined, totals, inner, asked,
                by_key, by_value, *by[2:6], *after, DEGREE=sizes.degree, **alone,
            )  # fmt: skip
        return by_query, by_key, by_value, *by, None, None, None, None


def scan(states: Tensor, running: Tensor, sources: Tensor, targets: Tensor, reverse: bool) -> None:
    scan_mode = "tf32x3" if mode(states) == "tf32x3" else "tf32"
    places, chunks, numbers = states.shape
    scan_kernel[(cdiv(numbers, SCANNED), places)](
        states, running, sources, targets, chunks, X=numbers, MODE=scan_mode, REVERSE=reverse,
        BLOCK=SCANNED, ROWS=AT_ONCE,
    )  # fmt: skip


def constants(query: Tensor, sizes: Sizes, features: int, head_dim: int, width: int) -> dict[str, Any]:
    """What all kernels are built for."""
    tiles = {"F": features, "D": head_dim, "V": width}
    most = max(features, CHUNK) * max(head_dim, width, CHUNK)
    return tiles | {
        **{f"BLOCK_{of}": max(LEAST, block(size)) for of, size in tiles.items()},
        "W": sizes.width,
        "MODE": mode(query),
        "C": CHUNK,
        "num_warps": FEW if most <= SMALL else MANY,
    }


def mode(query: Tensor) -> str:
    """How products are made: as precise as what comes in, and as PyTorch is told to be."""
    return MODES[torch.get_float32_matmul_precision()] if query.dtype == torch.float32 else "bf16"


def fits(features: int, width: int) -> bool:
    """Whether tiles of so many features, and of heads as wide, do into a multiprocessor."""
    return features <= MOST and width <= DEEPEST and block(features) * block(width) <= LARGEST


def held_type(query: Tensor) -> torch.dtype:
    """Of what products are made of: queries, keys and values, frequencies, and chunks' sums."""
    return torch.bfloat16 if mode(query) == "bf16" else torch.float32
