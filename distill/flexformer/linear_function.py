"""The kernels of linear attention, forwards and backwards, as one function that gradients go through."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .engine import CHUNK
from .linear_gradients import later_kernel, query_gradient_kernel
from .linear_kernels import output_kernel, sums_kernel
from .linear_key_gradients import key_gradient_kernel, value_gradient_kernel
from .linear_layout import Sizes, by_tokens, in_pieces, in_tiles, layout, lying_as, prepared, slim
from .linear_scan import scan_kernel
from .parameters import apart, zeros
from .tiles import cdiv, placed

#: Of a scan, numbers that a program has, and of how many parts at once: where there are few, and where there are more.
SCANNED, SCANNED_PARTS = 512, (4, 16)


class Kept(NamedTuple):
    """What comes of a text, and what the way back needs beside it.

    o (B, H, N, V), the state after the last token, which no gradient goes through, and what `linear_kernels` tell of;
    far and far_shares are empty where they are not needed.
    Of all that comes before a chunk in its part, and before a part, those are sums (B·K, chunks, F·V + F), peaks (B·K,
    chunks), part_sums (B·K, parts, F·V + F) and part_tops (B·K, parts + 1).
    """

    out: Tensor
    far: Tensor
    far_shares: Tensor
    after: Tensor
    last: Tensor
    weights: Tensor
    key_norms: Tensor
    query_norms: Tensor
    sums: Tensor
    peaks: Tensor
    part_sums: Tensor
    part_tops: Tensor
    tops: Tensor
    opened: Tensor
    joined: Tensor
    totals: Tensor


class Attention(torch.autograd.Function):
    """→ o (B, H, N, V) and the state after the last token, which no gradient goes through."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, present, before, sizes = rest
        # Once for both ways.
        query, key, value, given = prepared(query, key, value, given)
        kept = forwards(query, key, value, given, present, before or (), sizes)
        ctx.save_for_backward(query, key, value, *given, present, *kept)
        ctx.sizes, ctx.goes_on = sizes, bool(before)
        ctx.mark_non_differentiable(kept.after, kept.last)
        # Or noughts would be made for these two on every way back.
        ctx.set_materialize_grads(False)
        return kept.out, kept.after, kept.last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor, *_: Any) -> Any:
        query, key, value, *saved = ctx.saved_tensors
        (*given, present), kept = saved[: -len(Kept._fields)], Kept(*saved[-len(Kept._fields) :])
        *by_heads, by = backwards(asked, query, key, value, given, present, kept, ctx.sizes, ctx.goes_on)
        return *by_heads, *parted(by, given), None, None, None


def forwards(
    query: Tensor, key: Tensor, value: Tensor, given: Sequence[Tensor], present: Tensor | None,
    before: Sequence[Tensor], sizes: Sizes, launched: bool = True,
) -> Kept:  # fmt: skip
    """launched: False for the room alone that there is for all of it."""
    query, key, value, given = prepared(query, key, value, given)
    batch, heads, length, _ = query.shape
    kv_heads, width, features = key.shape[1], value.shape[-1], given[0].shape[-1 if sizes.given else -2]
    settings, end = layout(query, key, value, features, present is not None, sizes, bool(before))
    _, _, span, chunks = end
    places, parts, numbers = batch * kv_heads, cdiv(chunks, span), features * (width + 1)
    tiles, few = in_tiles(settings)
    far = sizes.width > 0 and tiles > 1
    wide = query.new_empty(0, dtype=torch.float32)
    kept = Kept(
        out=by_tokens(query, width),
        far=by_tokens(query, width if far else 0),
        far_shares=wide.new_empty(batch, heads, length if far else 0),
        after=wide.new_empty(batch, kv_heads, features, width + 1),
        last=wide.new_empty(batch, kv_heads, 1),
        weights=wide.new_empty(places, length),
        key_norms=wide.new_empty(places, length),
        query_norms=wide.new_empty(batch, heads, length),
        sums=query.new_empty(places, chunks, numbers),
        peaks=wide.new_empty(places, chunks),
        part_sums=query.new_empty(places, parts, numbers),
        part_tops=wide.new_empty(places, parts + 1),
        tops=wide.new_empty(places, chunks + 1),
        opened=wide.new_empty(batch, heads, length),
        joined=wide.new_empty(batch, heads, length),
        totals=wide.new_empty(batch, heads, length),
    )
    if not launched:
        return kept
    # In the place of what there is not stands something that is not read.
    present = query if present is None else present.contiguous()
    own, own_peaks = wide.new_empty(places, parts, numbers), wide.new_empty(places, parts)
    started = [each.contiguous() for each in before or (kept.after, kept.last)]
    grouped = settings | {"G": heads // kv_heads}
    # Beside a window more does not fit than a third program is worth.
    limit = {} if sizes.width else slim(grouped)
    with torch.cuda.device_of(query):
        sums_kernel[(parts, places, tiles)](
            placed(key), placed(value), present, *given[2:6], kept.weights, kept.key_norms, kept.sums, kept.peaks,
            own, own_peaks, sizes.scale, *end, DEGREE=sizes.degree, **settings, **few,
        )  # fmt: skip
        scan(own, kept.part_sums, kept.part_tops, settings, bool(before), own_peaks, *started, kept.after, kept.last)
        output_kernel[(chunks, batch * heads)](
            *map(placed, (query, key, value)), present, *given[:4], *given[6:], kept.weights, kept.key_norms,
            kept.query_norms, kept.sums, kept.peaks, kept.part_sums, kept.part_tops, kept.tops, placed(kept.out),
            placed(kept.far), kept.far_shares, kept.opened, kept.joined, kept.totals, sizes.scale, sizes.epsilon, *end,
            **grouped, **limit,
        )  # fmt: skip
    return kept


def backwards(
    asked: Tensor, query: Tensor, key: Tensor, value: Tensor, given: Sequence[Tensor], present: Tensor | None,
    kept: Kept, sizes: Sizes, goes_on: bool, launched: bool = True,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Gradients for q, k and v, and for what is given: of parameters all in one, see `parted`.

    launched: False for the room alone that there is for them.
    """
    query, key, value, given = prepared(query, key, value, given)
    by_query, by_key, by_value = (lying_as(each) for each in (query, key, value))
    if sizes.given:
        # Of keys that are in the window to the end nothing is written.
        by = found = [torch.zeros_like(each) for each in given]
    else:
        filled, by = zeros(given)
        found = [filled]
    if not launched:
        return by_query, by_key, by_value, found
    features = given[0].shape[-1 if sizes.given else -2]
    settings, end = layout(query, key, value, features, present is not None, sizes, goes_on)
    grouped = settings | {"G": query.shape[1] // key.shape[1]}
    length, _, _, chunks = end
    tiles, few = in_tiles(settings)
    present = query if present is None else present.contiguous()
    before_each = kept.sums, kept.peaks, kept.part_sums, kept.part_tops
    rows, (places, parts) = query.shape[0] * query.shape[1], kept.part_sums.shape[:2]
    # Of the queries that share a key, one at a time.
    alone = grouped if grouped["G"] == 1 else grouped | {"num_stages": 1}
    inputs, given_back = [placed(each) for each in (query, key, value)], placed(in_pieces(asked))
    inner, later = torch.empty_like(kept.joined), torch.empty_like(kept.sums)
    part_later, scanned = torch.empty_like(kept.part_sums, dtype=torch.float32), torch.empty_like(kept.part_sums)
    with torch.cuda.device_of(query):
        query_gradient_kernel[(chunks, rows)](
            *inputs, present, *given[:4], *given[7:], kept.weights, kept.key_norms, kept.query_norms, *before_each,
            kept.opened, kept.joined, kept.totals, placed(kept.out), placed(kept.far), kept.far_shares, given_back,
            placed(by_query), *by[:2], *by[6:], inner, sizes.scale, sizes.epsilon, *end, **grouped, **slim(grouped),
        )  # fmt: skip
        fewer = {name: each for name, each in alone.items() if name not in ("W", "SKIP", "PADDED")}
        later_kernel[(parts, places, tiles)](
            inputs[0], given_back, *given[:2], kept.query_norms, kept.tops, kept.opened, inner, later, part_later,
            sizes.scale, *end, **fewer, **few,
        )  # fmt: skip
        scan(part_later, scanned, kept.part_tops, grouped, False)
        keys = length + sizes.width - grouped["SKIP"] // CHUNK * CHUNK
        there, by_weights = (cdiv(keys, CHUNK), places), torch.empty_like(kept.weights) if tiles > 1 else kept.weights
        known = *inputs, present, *given[:4]
        after = kept.weights, kept.key_norms, kept.query_norms, later, scanned, kept.tops, kept.opened, kept.joined
        if tiles > 1:
            value_gradient_kernel[there](
                *known, *after, inner, given_back, placed(by_value), by_weights, sizes.scale, *end, **alone, **few
            )
        key_gradient_kernel[there](
            *known, *given[4:6], *after, inner, given_back, placed(by_key), placed(by_value), by_weights, *by[2:6],
            sizes.scale, *end, DEGREE=sizes.degree, **alone,
        )  # fmt: skip
    return by_query, by_key, by_value, found


def parted(by: list[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Gradients for each that is given, in its dtype: all at once, since one by one would take a launch for each."""
    return by if len(by) == len(given) else apart(by[0].to(given[1].dtype), given)


def scan(
    sums: Tensor, scanned: Tensor, tops: Tensor, settings: dict[str, Any], goes_on: bool, *forwards: Tensor
) -> None:
    """Of all parts before each, and, without what is only needed for that, of all after each: see `scan_kernel`."""
    (places, parts, numbers), (few, many) = sums.shape, SCANNED_PARTS
    # In the place of what is not read stands something.
    scan_kernel[(cdiv(numbers, SCANNED), places)](
        sums, scanned, tops, *(forwards or [tops] * 5), parts, F=settings["F"], V=settings["V"],
        REVERSE=not forwards, GOES_ON=goes_on, BLOCK=SCANNED, AT_ONCE=few if parts <= few else many,
    )  # fmt: skip
