"""KL(P‖A) of whole layers through the kernels of `map_kernels`, on a GPU: no tile of a map outlives its program."""

import importlib.util
import math
from typing import Any

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
#: Of products, the most factors whose least value float32 can tell from nought.
HIGHEST = 3
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
        and getattr(mixer.map, "order", 1) <= HIGHEST
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
        if fused(mixer):
            found: Tensor = FusedKl.apply(*parameters(mixer), mixer, heads, rows)
        else:
            found = FeaturesKl.apply(*told(mixer, heads, rows), mixer, heads, rows)
    return found.unflatten(1, (heads.key.shape[1], -1))


class FusedKl(torch.autograd.Function):
    """→ (B, H, Q), from which gradients go to the parameters of a mixer of exponential features."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *learned, mixer, heads, rows = given
        settings = constants(mixer, heads)
        query, key = held(heads, settings)
        length, scale = query.shape[2], heads.scaling**0.5
        every = rows if len(rows) == length else torch.arange(length, device=rows.device)
        gated, weighted = 2 * (mixer.width > 0), len(mixer.key_weight.coefficients)
        query_phi, gate = features(query, rows, learned[:2], learned[6:], scale, gated, mixer.width > 0, settings)
        key_phi, weight = features(key, every, learned[2:4], learned[3:6], scale, weighted, False, settings)
        kl = forwards(ctx, heads, query, key, query_phi, key_phi, weight, gate, rows, settings, *learned)
        ctx.scales, ctx.degree = (heads.scaling * LOG2_E, scale), weighted
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from .map_gradients import key_kernel, query_kernel

        tiles, learned, settings = ctx.saved_tensors[:9], ctx.saved_tensors[9:], ctx.settings
        query, key, rows, (_, by) = tiles[0], tiles[1], tiles[6], zeros(learned)
        (batch, count, length, _), shared = query.shape, key.shape[1]
        both = *tiles, gradient.contiguous()
        with torch.cuda.device_of(query):
            query_kernel[(batch * count, cdiv(len(rows), TILE))](
                *both, *learned[7:], *by[:2], *by[6:], *ctx.scales, len(rows), length, count, **settings
            )
            key_kernel[(batch * shared, cdiv(length, TILE))](
                *both, *learned[4:6], *by[2:6], *ctx.scales, len(rows), length, shared,
                DEGREE=ctx.degree, SAMPLED=len(rows) < length, **settings,
            )  # fmt: skip
        return *by, None, None, None


class FeaturesKl(torch.autograd.Function):
    """φ_q (B, H, Q, F), φ_k (B, K, N, F), w (B, K, N) and g (B, H, Q) → (B, H, Q)."""

    @staticmethod
    def forward(ctx: Any, query_phi: Tensor, key_phi: Tensor, weight: Tensor, gate: Tensor, *rest: Any) -> Tensor:
        mixer, heads, rows = rest
        settings = constants(mixer, heads)
        query, key = held(heads, settings)
        query_phi, key_phi = query_phi.contiguous(), key_phi.contiguous()
        weight, gate = (weight * LOG2_E).contiguous(), (gate * LOG2_E).contiguous()
        ctx.scaling = heads.scaling * LOG2_E
        return forwards(ctx, heads, query, key, query_phi, key_phi, weight, gate, rows, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from .map_gradients import key_features_kernel, query_features_kernel

        tiles, settings = ctx.saved_tensors, ctx.settings
        query, key, query_phi, key_phi, weight, _, rows = tiles[:7]
        (batch, count, length, _), shared = query.shape, key.shape[1]
        both = *tiles, gradient.contiguous()
        by_query, by_key, by_weight = (torch.empty_like(each) for each in (query_phi, key_phi, weight))
        by_gate = query_phi.new_empty(query_phi.shape[:-1])
        with torch.cuda.device_of(query):
            query_features_kernel[(batch * count, cdiv(len(rows), TILE))](
                *both, by_query, by_gate, ctx.scaling, len(rows), length, count, **settings
            )
            key_features_kernel[(batch * shared, cdiv(length, TILE))](
                *both, by_key, by_weight, ctx.scaling, len(rows), length, shared,
                SAMPLED=len(rows) < length, **settings,
            )  # fmt: skip
        return by_query, by_key, by_weight, by_gate, None, None, None


def held(heads: Heads, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys as products take them."""
    dtype = torch.bfloat16 if settings["MODE"] == "bf16" else torch.float32
    return heads.query.to(dtype).contiguous(), heads.key.to(dtype).contiguous()


def forwards(
    ctx: Any, heads: Heads, query: Tensor, key: Tensor, query_phi: Tensor, key_phi: Tensor, weight: Tensor,
    gate: Tensor, rows: Tensor, settings: dict[str, Any], *kept: Tensor,
) -> Tensor:  # fmt: skip
    """KL (B, H, Q); what going back begins with is saved, and after it what else is to be kept."""
    from .map_kernels import forward_kernel

    batch, count, length, _ = query.shape
    # In the place of what there is not stands something that is not read.
    there = rows if heads.padding is None else (heads.padding != 0).contiguous()
    kl, teacher, beyond = (gate.new_empty(batch, count, len(rows)) for _ in range(3))
    tiles = query, key, query_phi, key_phi, weight
    forward_kernel[(batch * count, cdiv(len(rows), TILE))](
        *tiles, gate, there, rows, kl, teacher, beyond, heads.scaling * LOG2_E, len(rows), length, count, **settings
    )
    ctx.save_for_backward(*tiles, there, rows, teacher, beyond, *kept)
    ctx.settings = settings
    return kl


def told(mixer: Mixer, heads: Heads, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `FeaturesKl` takes."""
    real = heads.key.new_ones(len(heads.key), heads.key.shape[2], dtype=torch.bool)
    if heads.padding is not None:
        real = heads.padding != 0
    found = levels(mixer, heads.query, heads.key, heads.scaling, real, real.cumsum(1) - 1)
    gate = found.query.new_zeros(found.query.shape[:-1]) if found.gate is None else found.gate
    return chosen(found.query, rows), found.key, found.weight, chosen(gate, rows)


def features(
    x: Tensor, at: Tensor, projection: Any, polynomial: Any, scale: float, degree: int, biased: bool, settings: Any
) -> tuple[Tensor, Tensor]:
    """φ of the rows `at` of queries or keys, and their gate or weight: (B, H, R, F) and (B, H, R).

    projection: frequency and bias; polynomial: its coefficients, of which `degree` and perhaps the constant count.
    """
    from .map_kernels import features_kernel

    batch, heads, length, _ = x.shape
    phi = x.new_empty(batch, heads, len(at), settings["F"])
    level = x.new_empty(batch, heads, len(at), dtype=torch.float32)
    fewer = {name: settings[name] for name in ("F", "D", "MODE", "TILE", "BLOCK_D", "BLOCK_F", "num_warps")}
    features_kernel[(cdiv(len(at), TILE), batch * heads)](
        x,
        at,
        *projection,
        *polynomial,
        phi,
        level,
        scale,
        len(at),
        length,
        heads,
        DEGREE=degree,
        BIASED=biased,
        **fewer,
    )
    return phi, level


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
