"""KL(P‖A) of whole layers through the kernels of `map_kernels`, on a GPU: no tile of a map outlives its program."""

import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .capture import Heads
from .flexformer.attempt import attempt, possible, roomy
from .flexformer.engine import chosen
from .flexformer.levels import fused, leveled, levels
from .flexformer.mixer import PARTS, Mixer
from .flexformer.parameters import parameters, zeros
from .flexformer.precision import MODES

#: log₂ e: the kernels' logarithms are to the base 2.
LOG2_E = math.log2(math.e)
#: Rows of a tile.
TILE = 64
#: Features whose tiles fit into shared memory, by how products are made.
MOST = {"bf16": 256, "tf32": 256, "tf32x3": 128}
#: More features are wide: they have registers among twice as many warps and, of float32, room beside half a tile.
WIDE = 128
#: The largest head_dim whose tiles fit into shared memory.
DEEPEST = 128
#: What the kernels are for.
WHAT = "the loss of attention maps"
#: Warps; MANY for the wide, since they would make the same twice of others.
FEW, MANY = 4, 8


def streams(mixer: Mixer, heads: Heads) -> bool:
    """Whether there are kernels for the map loss of `mixer`, whole: of positive maps, without decay."""
    return (
        heads.query.is_cuda
        and heads.query.dtype != torch.float64
        and roomy(heads.query.device)
        and mixer.comparable
        and leveled(mixer)
        and len(mixer.parts) == len(PARTS)
        # They go back to the mixer alone, as from a teacher that learns nothing.
        and not (heads.query.requires_grad or heads.key.requires_grad)
        and heads.query.shape[-1] <= DEEPEST
        and mixer.feature_dim <= MOST[mode(mixer)]
        and mixer.map.clear
        and possible(WHAT)
        and importlib.util.find_spec("triton") is not None
    )


def mode(mixer: Mixer) -> str:
    """How products are made: as PyTorch is told to where features are made here, which are above 0, and rounding takes
    little of them. Of others it can take the sign of a kernel's value, whose logarithm is wanted."""
    return MODES[torch.get_float32_matmul_precision()] if fused(mixer) else "tf32x3"


def try_stream_kl(mixer: Mixer, heads: Heads, rows: Tensor) -> Tensor | None:
    """`stream_kl`, and None where its kernels cannot be built."""
    return attempt(WHAT, lambda: stream_kl(mixer, heads, rows))


def stream_kl(mixer: Mixer, heads: Heads, rows: Tensor) -> Tensor:
    """KL(P‖A) of the queries at `rows`, sorted: (B, K, G, Q)."""
    with torch.cuda.device_of(heads.query):
        given = parameters(mixer) if fused(mixer) else told(mixer, heads, rows)
        found: Tensor = StreamedKl.apply(*given, mixer, heads, rows)
    return found.unflatten(1, (heads.key.shape[1], -1))


class StreamedKl(torch.autograd.Function):
    """→ (B, H, Q), from which gradients go to a mixer's parameters, or to what stands in their place."""

    @staticmethod
    def forward(ctx: Any, *rest: Any) -> Tensor:
        from .map_kernels import forward_kernel

        *given, mixer, heads, rows = rest
        settings = constants(mixer, heads)
        query, key = held(heads, settings)
        (batch, count, length, _), scale, degree = query.shape, heads.scaling**0.5, len(mixer.key_weight.coefficients)
        if not fused(mixer):
            query_phi, key_phi, weight = given[0], given[2], given[4] * LOG2_E
            gate = given[6] * LOG2_E if mixer.width else weight.new_zeros(batch, count, len(rows))
        else:
            every = rows if len(rows) == length else torch.arange(length, device=rows.device)
            gated, weighted = Level(2 * (mixer.width > 0), mixer.width > 0), Level(degree, False)
            query_phi, gate = features(query, rows, given[:2], given[6:], scale, gated, settings)
            key_phi, weight = features(key, every, given[2:4], given[3:6], scale, weighted, settings)
        # In the place of what there is not stands something that is not read.
        there = rows if heads.padding is None else (heads.padding != 0).contiguous()
        kl, teacher, beyond = (torch.empty_like(gate) for _ in range(3))
        tiles, both = (query, key, query_phi, key_phi, weight), heads.scaling * LOG2_E
        forward_kernel[(batch * count, cdiv(len(rows), TILE))](
            *tiles, gate, there, rows, kl, teacher, beyond, both, len(rows), length, count, **settings
        )
        ctx.save_for_backward(*tiles, there, rows, teacher, beyond, *given)
        ctx.settings, ctx.scales, ctx.degree = settings | {"GIVEN": not fused(mixer)}, (both, scale), degree
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from .map_gradients import key_kernel, query_kernel

        tiles, given, settings = ctx.saved_tensors[:9], ctx.saved_tensors[9:], ctx.settings
        query, key, rows = tiles[0], tiles[1], tiles[6]
        (batch, count, length, _), shared = query.shape, key.shape[1]
        by = [torch.empty_like(each) for each in given] if settings["GIVEN"] else zeros(given)[1]
        both = *tiles, gradient.contiguous()
        with torch.cuda.device_of(query):
            query_kernel[(batch * count, cdiv(len(rows), TILE))](
                *both, *given[7:], *by[:2], *by[6:], *ctx.scales, len(rows), length, count, **settings
            )
            key_kernel[(batch * shared, cdiv(length, TILE))](
                *both, *given[4:6], *by[2:6], *ctx.scales, len(rows), length, shared,
                DEGREE=ctx.degree, SAMPLED=len(rows) < length, **settings,
            )  # fmt: skip
        return *by, None, None, None


class Level(NamedTuple):
    """How far the polynomial of a gate or a key weight goes, and whether it has a constant."""

    degree: int
    constant: bool


def held(heads: Heads, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys as products take them."""
    dtype = torch.bfloat16 if settings["MODE"] == "bf16" else torch.float32
    return heads.query.to(dtype).contiguous(), heads.key.to(dtype).contiguous()


def told(mixer: Mixer, heads: Heads, rows: Tensor) -> tuple[Tensor, ...]:
    """What the kernels take in the place of parameters, see `levels`: of the queries at `rows`."""
    real = heads.key.new_ones(len(heads.key), heads.key.shape[2], dtype=torch.bool)
    if heads.padding is not None:
        real = heads.padding != 0
    found = levels(mixer, heads.query, heads.key, heads.scaling, real, real.cumsum(1) - 1)
    gate = None if found.gate is None else chosen(found.gate, rows)
    return found._replace(query=chosen(found.query, rows), gate=gate).in_place()


def features(
    x: Tensor, at: Tensor, projection: Any, polynomial: Any, scale: float, level: Level, settings: Any
) -> tuple[Tensor, Tensor]:
    """φ of the rows `at` of queries or keys, and their gate or weight: (B, H, R, F) and (B, H, R).

    projection: frequency and bias; polynomial: its constant and coefficients, of which level says what counts.
    """
    from .map_kernels import features_kernel

    batch, heads, length, _ = x.shape
    phi = x.new_empty(batch, heads, len(at), settings["F"])
    found = x.new_empty(batch, heads, len(at), dtype=torch.float32)
    fewer = {name: settings[name] for name in ("F", "D", "MODE", "TILE", "BLOCK_D", "BLOCK_F", "num_warps")}
    features_kernel[(cdiv(len(at), TILE), batch * heads)](
        x, at, *projection, *polynomial, phi, found, scale, len(at), length, heads,
        DEGREE=level.degree, BIASED=level.constant, **fewer,
    )  # fmt: skip
    return phi, found


def constants(mixer: Mixer, heads: Heads) -> dict[str, Any]:
    """What the kernels of tiles are built for."""
    from .flexformer.tiles import block

    made, head_dim = mode(mixer), heads.query.shape[-1]
    wide = mixer.feature_dim > WIDE
    return {
        "G": heads.query.shape[1] // heads.key.shape[1],
        "F": mixer.feature_dim,
        "D": head_dim,
        "W": mixer.width,
        "CAUSAL": heads.causal,
        "PADDED": heads.padding is not None,
        "MODE": made,
        "TILE": TILE,
        "BLOCK_N": TILE // 2 if wide and made != "bf16" else TILE,
        "BLOCK_D": block(head_dim),
        "BLOCK_F": block(mixer.feature_dim),
        "num_warps": MANY if wide else FEW,
        # Tiles on their way from memory: of float32 there is no room for several, and of three registers run out.
        "num_stages": 1 if made != "bf16" else 2,
    }


def cdiv(count: int, size: int) -> int:
    return -(-count // size)
