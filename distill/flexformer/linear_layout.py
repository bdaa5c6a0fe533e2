"""How the kernels of linear attention are launched: as what they are built, and how what they are given lies."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .engine import CHUNK
from .precision import mode
from .tiles import LEAST, block, cdiv

#: The most chunks to a part, which one program goes through, and how many such programs of FEW warps a multiprocessor
#: has room for.
SPAN, PROGRAMS = 16, 2
#: Warps: as few as have registers for a tile of so many numbers, since more make the same twice.
FEW, MANY, SMALL = 4, 8, 8192
#: The most features that are one tile, and how many are in each where there are more.
WIDEST, TILE = 128, 64
#: Registers of a thread, where a third program on a multiprocessor is worth more than what does not fit.
SLIM = 168


class Sizes(NamedTuple):
    """Tokens of the window, how far the key weight's polynomial goes, ε, the root of softmax's scaling, and whether
    features are given."""

    width: int
    degree: int
    epsilon: float
    scale: float
    given: bool


def prepared(
    query: Tensor, key: Tensor, value: Tensor, given: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """As kernels take them."""
    query, key, value = (in_pieces(each) for each in (query, key, value))
    held = [each.to(query.dtype) if place in (0, 2) else each for place, each in enumerate(given)]
    return query, key, value, held


def layout(
    query: Tensor, key: Tensor, value: Tensor, features: int, padded: bool, sizes: Sizes, goes_on: bool
) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """What kernels are built for; and length, heads of keys, chunks to a part, and chunks."""
    length, places, chunks = query.shape[2], key.shape[0] * key.shape[1], cdiv(query.shape[2], CHUNK)
    settings = constants(query, sizes, features, query.shape[-1], value.shape[-1])
    settings |= {"SKIP": 0 if goes_on else sizes.width, "PADDED": padded}
    span = spanned(chunks, places * in_tiles(settings)[0], settings["num_warps"], query.device)
    return settings, (length, key.shape[1], span, chunks)


def spanned(chunks: int, places: int, warps: int, device: torch.device) -> int:
    """Of so many chunks in each of B·K places' tiles, how many to a part: as few as leave none waiting, up to SPAN."""
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


def constants(query: Tensor, sizes: Sizes, features: int, head_dim: int, width: int) -> dict[str, Any]:
    """What all kernels are built for."""
    tiles = {"F": features, "D": head_dim, "V": width}
    whole = features <= WIDEST
    blocks = {of: max(LEAST.value, block(size)) for of, size in (tiles if whole else tiles | {"F": TILE}).items()}
    return tiles | {
        **{f"BLOCK_{of}": size for of, size in blocks.items()},
        "W": sizes.width,
        "GIVEN": sizes.given,
        "MODE": mode(query),
        "C": CHUNK,
        "num_warps": FEW if blocks["F"] * max(blocks["D"], blocks["V"]) <= SMALL else MANY,
        # More loads at a time are worth less than a second program.
        "num_stages": 2 if whole else 1,
    }


def slim(settings: dict[str, Any]) -> dict[str, int]:
    """For a kernel that runs faster with more programs at a time than with all its numbers in registers."""
    return {"maxnreg": SLIM} if settings["num_warps"] == FEW else {}


def in_tiles(settings: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Tiles that features are in; and how, where there are more than one, kernels are launched that do one of them."""
    tiles = cdiv(settings["F"], settings["BLOCK_F"])
    return tiles, slim(settings) if tiles > 1 else {}
