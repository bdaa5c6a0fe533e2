"""The kernels of linear attention, forwards and backwards, as one function that gradients go through."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .engine import CHUNK
from .linear_gradients import key_gradient_kernel, later_kernel, query_gradient_kernel
from .linear_kernels import output_kernel, sums_kernel
from .linear_scan import scan_kernel
from .parameters import apart, zeros
from .precision import mode
from .tiles import LEAST, block, cdiv, placed

#: The most chunks to a part, which one program goes through, and how many such programs of FEW warps a multiprocessor
#: has room for.
SPAN, PROGRAMS = 16, 2
#: Of a scan, numbers that a program has, and of how many parts at once: where there are few, and where there are more.
SCANNED, SCANNED_PARTS = 512, (4, 16)
#: Warps: as few as have registers for a tile of so many numbers, since more make the same twice.
FEW, MANY, SMALL = 4, 8, 8192
#: Registers of a thread, where a third program of FEW warps on a multiprocessor is worth more than what does not fit.
SLIM = 168


class Sizes(NamedTuple):
    """Tokens of the window, how far the key weight's polynomial goes, ε, the root of softmax's scaling, and whether
    features are given."""

    width: int
    degree: int
    epsilon: float
    scale: float
    given: bool


class Sums(NamedTuple):
    """Of all that comes before a chunk in its part, and of all before a part: rows of sums, and the largest weights.

    (B·K, chunks, F·V + F), (B·K, chunks), (B·K, parts, F·V + F) and (B·K, parts + 1).
    """

    chunk: Tensor
    peak: Tensor
    part: Tensor
    top: Tensor


class Attention(torch.autograd.Function):
    """→ o (B, H, N, V) and the state after the last token, which no gradient goes through."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, present, before, sizes = rest
        query, key, value = (in_pieces(each) for each in (query, key, value))
        given[0], given[2] = (each.to(query.dtype) for each in (given[0], given[2]))
        batch, heads, length, head_dim = query.shape
        kv_heads, width, features = key.shape[1], value.shape[-1], given[0].shape[-1 if sizes.given else -2]
        chunks, places, numbers = cdiv(length, CHUNK), batch * kv_heads, features * (width + 1)
        settings = constants(query, sizes, features, head_dim, width)
        settings |= {"SKIP": 0 if before else sizes.width, "PADDED": present is not None}
        grouped = settings | {"G": heads // kv_heads}
        span = spanned(chunks, places, settings["num_warps"], query.device)
        parts, end = cdiv(chunks, span), (length, kv_heads, span, chunks)
        # In the place of what there is not stands something that is not read.
        present = query if present is None else present.contiguous()

        wide = query.new_empty(0, dtype=torch.float32)
        weights, key_norms = wide.new_empty(places, length), wide.new_empty(places, length)
        tops, query_norms = wide.new_empty(places, chunks + 1), wide.new_empty(batch, heads, length)
        sums, peaks = query.new_empty(places, chunks, numbers), wide.new_empty(places, chunks)
        part_sums, part_peaks = wide.new_empty(places, parts, numbers), wide.new_empty(places, parts)
        sums_kernel[(parts, places)](
            placed(key), placed(value), present, *given[2:6], weights, key_norms, sums, peaks, part_sums, part_peaks,
            sizes.scale, *end, DEGREE=sizes.degree, **settings,
        )  # fmt: skip
        after, last = wide.new_empty(batch, kv_heads, features, width + 1), wide.new_empty(batch, kv_heads, 1)
        started = [each.contiguous() for each in before or (after, last)]
        part_tops = wide.new_empty(places, parts + 1)
        scanned = scan(part_sums, part_tops, settings, query.dtype, bool(before), part_peaks, *started, after, last)
        before_each = Sums(sums, peaks, scanned, part_tops)
        out = by_tokens(query, width)
        opened, joined, totals = (wide.new_empty(batch, heads, length) for _ in range(3))
        # Beside a window more does not fit than a third program is worth.
        limit = {} if sizes.width else slim(grouped)
        output_kernel[(chunks, batch * heads)](
            *map(placed, (query, key, value)), present, *given[:4], *given[6:], weights, key_norms, query_norms,
            *before_each, tops, placed(out), opened, joined, totals, sizes.scale, sizes.epsilon, *end,
            **grouped, **limit,
        )  # fmt: skip
        ctx.save_for_backward(
            query, key, value, *given, present, weights, key_norms, query_norms, *before_each,
            tops, opened, joined, totals, out,
        )  # fmt: skip
        ctx.sizes, ctx.grouped, ctx.end = sizes, grouped, end
        ctx.mark_non_differentiable(after, last)
        # Or noughts would be made for these two on every way back.
        ctx.set_materialize_grads(False)
        return out, after, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor, *_: Any) -> Any:
        query, key, value, *saved = ctx.saved_tensors
        *given, present, weights, key_norms, query_norms = saved[:-9]
        before_each, (tops, opened, joined, totals, out) = Sums(*saved[-9:-5]), saved[-5:]
        sizes, grouped, end = ctx.sizes, ctx.grouped, ctx.end
        length, _, _, chunks = end
        rows, (places, parts) = query.shape[0] * query.shape[1], before_each.part.shape[:2]
        # Of the queries that share a key, one at a time.
        alone = grouped if grouped["G"] == 1 else grouped | {"num_stages": 1}
        by_query, by_key, by_value = (lying_as(each) for each in (query, key, value))
        inputs, given_back = [placed(each) for each in (query, key, value)], placed(in_pieces(asked))
        if sizes.given:
            # Of keys that are in the window to the end nothing is written.
            by = [torch.zeros_like(each) for each in given]
        else:
            filled, by = zeros(given)
        inner, later = torch.empty_like(joined), torch.empty_like(before_each.chunk)
        part_later = torch.empty_like(before_each.part, dtype=torch.float32)
        with torch.cuda.device_of(query):
            query_gradient_kernel[(chunks, rows)](
                *inputs, present, *given[:4], *given[7:], weights, key_norms, query_norms, *before_each, opened, joined,
                totals, placed(out), given_back, placed(by_query), *by[:2], *by[6:], inner, sizes.scale, sizes.epsilon,
                *end, **grouped, **slim(grouped),
            )  # fmt: skip
            fewer = {name: each for name, each in alone.items() if name not in ("W", "SKIP", "PADDED")}
            later_kernel[(parts, places)](
                inputs[0], given_back, *given[:2], query_norms, tops, opened, inner, later, part_later, sizes.scale,
                *end, **fewer,
            )  # fmt: skip
            after_each = later, scan(part_later, before_each.top, grouped, later.dtype, False)
            keys = length + sizes.width - grouped["SKIP"] // CHUNK * CHUNK
            key_gradient_kernel[(cdiv(keys, CHUNK), places)](
                *inputs, present, *given[:6], weights, key_norms, query_norms, *after_each, tops, opened, joined, inner,
                given_back, placed(by_key), placed(by_value), *by[2:6], sizes.scale, *end, DEGREE=sizes.degree, **alone,
            )  # fmt: skip
        if not sizes.given:
            # As the parameters are, all at once: for each by itself it would be another launch.
            by = apart(filled.to(given[1].dtype), given)
        return by_query, by_key, by_value, *by, None, None, None


def spanned(chunks: int, places: int, warps: int, device: torch.device) -> int:
    """Of so many chunks in each of B·K places, how many to a part: as few as leave none waiting, up to SPAN."""
    # Interpreted, programs come one after another.
    there = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    parts = there * PROGRAMS * FEW // warps // places
    return min(cdiv(chunks, max(parts, 1)), SPAN)


def in_pieces(x: Tensor) -> Tensor:
    """As it is, where the numbers of a token of a head lie side by side: as projections leave them, too."""
    return x if x.stride(-1) == 1 else x.contiguous()


def lying_as(x: Tensor) -> Tensor:
    """Room for its gradient, which autograd would copy if it lay otherwise."""
    found = torch.empty_like(x)
    return found if found.stride(-1) == 1 else x.new_empty(x.shape)


def by_tokens(like: Tensor, width: int) -> Tensor:
    """Room for (B, H, N, width), all heads of a token side by side: as the next projection takes them."""
    batch, heads, length, _ = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def scan(
    sums: Tensor, tops: Tensor, settings: dict[str, Any], dtype: torch.dtype, goes_on: bool, *forwards: Tensor
) -> Tensor:
    """Of all parts before each, and, without what is only needed for that, of all after each: see `scan_kernel`."""
    places, parts, numbers = sums.shape
    found, (few, many) = torch.empty_like(sums, dtype=dtype), SCANNED_PARTS
    # In the place of what is not read stands something.
    scan_kernel[(cdiv(numbers, SCANNED), places)](
        sums, found, tops, *(forwards or [tops] * 5), parts, F=settings["F"], V=settings["V"],
        REVERSE=not forwards, GOES_ON=goes_on, BLOCK=SCANNED, AT_ONCE=few if parts <= few else many,
    )  # fmt: skip
    return found


def constants(query: Tensor, sizes: Sizes, features: int, head_dim: int, width: int) -> dict[str, Any]:
    """What all kernels are built for."""
    tiles = {"F": features, "D": head_dim, "V": width}
    most = max(features, CHUNK) * max(head_dim, width, CHUNK)
    return tiles | {
        **{f"BLOCK_{of}": max(LEAST.value, block(size)) for of, size in tiles.items()},
        "W": sizes.width,
        "GIVEN": sizes.given,
        "MODE": mode(query),
        "C": CHUNK,
        "num_warps": FEW if most <= SMALL else MANY,
        "num_stages": 2,
    }


def slim(settings: dict[str, Any]) -> dict[str, int]:
    """For a kernel that runs faster with more programs at a time than with all its numbers in registers."""
    return {"maxnreg": SLIM} if settings["num_warps"] == FEW else {}
