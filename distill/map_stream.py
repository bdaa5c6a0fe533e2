"""KL(P‖A) of whole layers through the kernels of `map_kernels`, on a GPU: no tile of a map outlives its program."""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .capture import Heads
from .flexformer.attempt import attempt, possible, roomy
from .flexformer.decay import NoDecay
from .flexformer.exponential import Exponential
from .flexformer.mixer import PARTS, Mixer
from .flexformer.parameters import parameters, zeros
from .flexformer.precision import MODES

#: Rows of a tile, and of those that it is held against.
TILE, AGAINST = 64, 64
#: Features whose tiles fit into shared memory, by how products are made; and of how many those of three steps do.
MOST = {"bf16": 256, "tf32": 256, "tf32x3": 128}
AHEAD = 128
#: The largest head_dim whose tiles fit into shared memory.
DEEPEST = 128
#: What the kernels are for.
WHAT = "the loss of attention maps"
#: Warps: more would make the same twice, of so many features; of more than them there are no registers otherwise.
FEW, MANY = 4, 8


def streams(mixer: Mixer, heads: Heads) -> bool:
    """Whether there are kernels for the map loss of `mixer`, whole: exponential features without decay."""
    return (
        heads.query.is_cuda
        and heads.query.dtype != torch.float64
        and roomy(heads.query.device)
        and type(mixer.map) is Exponential
        and type(mixer.decay) is NoDecay
        and len(mixer.parts) == len(PARTS)
        # They go back to parameters alone, as a teacher that learns nothing has it.
        and not (heads.query.requires_grad or heads.key.requires_grad)
        and heads.query.shape[-1] <= DEEPEST
        and mixer.feature_dim <= MOST[MODES[torch.get_float32_matmul_precision()]]
        and possible(WHAT)
        and importlib.util.find_spec("triton") is not None
    )


def try_stream_kl(mixer: Mixer, heads: Heads, rows: Tensor) -> Tensor | None:
    """`stream_kl`, and None where its kernels cannot be built."""
    return attempt(WHAT, lambda: stream_kl(mixer, heads, rows))


def stream_kl(mixer: Mixer, heads: Heads, rows: Tensor) -> Tensor:
    """KL(P‖A) of the queries at `rows`, sorted: (B, K, G, Q)."""
    with torch.cuda.device_of(heads.query):
        found: Tensor = StreamedKl.apply(*parameters(mixer), mixer, heads, rows)
    return found.unflatten(1, (heads.key.shape[1], -1))


class StreamedKl(torch.autograd.Function):
    """→ (B, H, Q), from which gradients go to the mixer's parameters."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        from .map_kernels import LOG2_E, forward_kernel

        *learned, mixer, heads, rows = given
        settings = constants(mixer, heads)
        held = torch.bfloat16 if settings["MODE"] == "bf16" else torch.float32
        query, key = (each.to(held).contiguous() for each in (heads.query, heads.key))
        batch, count, length, _ = query.shape
        scale = heads.scaling**0.5
        every = rows if len(rows) == length else torch.arange(length, device=rows.device)
        gated, weighted = 2 * (mixer.width > 0), len(mixer.key_weight.coefficients)
        query_phi, gate = features(query, rows, learned[:2], learned[6:], scale, gated, mixer.width > 0, settings)
        key_phi, weight = features(key, every, learned[2:4], learned[3:6], scale, weighted, False, settings)
        # In the place of what there is not stands something that is not read.
        there = rows if heads.padding is None else (heads.padding != 0).contiguous()
        kl, teacher, student = (gate.new_empty(batch, count, len(rows)) for _ in range(3))
        tiles = query, key, query_phi, key_phi, weight, gate, there, rows
        forward_kernel[(cdiv(len(rows), TILE), batch * count)](
            *tiles, kl, teacher, student, heads.scaling * LOG2_E.value, len(rows), length, count, **settings
        )
        ctx.save_for_backward(*tiles, teacher, student, *learned)
        ctx.settings, ctx.scaling, ctx.degree = settings, heads.scaling, weighted
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from .map_gradients import key_kernel, query_kernel
        from .map_kernels import LOG2_E

        *tiles, teacher, student = ctx.saved_tensors[:10]
        learned = ctx.saved_tensors[10:]
        query, key, rows = tiles[0], tiles[1], tiles[7]
        batch, count, length, _ = query.shape
        shared, by = key.shape[1], zeros(learned)
        both = *tiles, teacher, student, gradient.contiguous()
        scales = ctx.scaling * LOG2_E.value, ctx.scaling**0.5
        with torch.cuda.device_of(query):
            query_kernel[(cdiv(len(rows), TILE), batch * count)](
                *both, *learned[7:], *by[:2], *by[6:], *scales, len(rows), length, count, **ctx.settings
            )
            key_kernel[(cdiv(length, TILE), batch * shared)](
                *both, *learned[4:6], *by[2:6], *scales, len(rows), length, shared, DEGREE=ctx.degree, **ctx.settings
            )
        return *by, None, None, None


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
        x, at, *projection, *polynomial, phi, level, scale, len(at), length, heads, DEGREE=degree, BIASED=biased, **fewer
    )
    return phi, level


def constants(mixer: Mixer, heads: Heads) -> dict[str, Any]:
    """What the kernels of tiles are built for."""
    from .flexformer.tiles import block

    mode, head_dim = MODES[torch.get_float32_matmul_precision()], heads.query.shape[-1]
    wide = mixer.feature_dim > AHEAD
    return {
        "G": heads.query.shape[1] // heads.key.shape[1],
        "F": mixer.feature_dim,
        "D": head_dim,
        "W": mixer.width,
        "CAUSAL": heads.causal,
        "PADDED": heads.padding is not None,
        "MODE": mode,
        "TILE": TILE,
        "BLOCK_N": AGAINST,
        "BLOCK_D": block(head_dim),
        "BLOCK_F": block(mixer.feature_dim),
        "num_warps": MANY if wide else FEW,
        # Tiles on their way from memory: of float32 there is no room for several.
        "num_stages": 1 if mode != "bf16" else 2 if wide else 3,
    }


def cdiv(count: int, size: int) -> int:
    return -(-count // size)
