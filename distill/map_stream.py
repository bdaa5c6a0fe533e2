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
from .flexformer.precision import MODES
from .flexformer.weights import Whole

#: Rows and keys of a tile, and features that a program makes the gradient for.
TILE, PART = 64, 128
#: Features whose tiles fit into shared memory, by how products are made; and of how many those of three steps do.
MOST = {"bf16": 256, "tf32": 256, "tf32x3": 128}
AHEAD = 128
#: The largest head_dim whose tiles fit into shared memory.
DEEPEST = 128
#: What the kernels are for.
WHAT = "the loss of attention maps"
#: More would make the same twice, of a tile of so many rows.
WARPS = 4


def streams(mixer: Mixer, heads: Heads) -> bool:
    """Whether there are kernels for the map loss of `mixer`, whole: exponential features without decay."""
    return (
        heads.query.is_cuda
        and heads.query.dtype != torch.float64
        and roomy(heads.query.device)
        and type(mixer.map) is Exponential
        and type(mixer.decay) is NoDecay
        and len(mixer.parts) == len(PARTS)
        and heads.query.shape[-1] <= DEEPEST
        and mixer.feature_dim <= MOST[MODES[torch.get_float32_matmul_precision()]]
        and possible(WHAT)
        and importlib.util.find_spec("triton") is not None
    )


def try_stream_kl(whole: Whole, heads: Heads, rows: Tensor) -> Tensor | None:
    """`stream_kl`, and None where its kernels cannot be built."""
    return attempt(WHAT, lambda: stream_kl(whole, heads, rows))


def stream_kl(whole: Whole, heads: Heads, rows: Tensor) -> Tensor:
    """KL(P‖A) of the queries at `rows`, sorted: (B, K, G, Q)."""
    features = whole.features
    found = StreamedKl.apply(features.query, features.key, features.log_weight, whole.gate, whole, heads, rows)
    return found.unflatten(1, (heads.key.shape[1], -1))


class StreamedKl(torch.autograd.Function):
    """(B, H, N, F), (B, K, N, F), (B, K, N) and (B, H, N) → (B, H, Q)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, weight: Tensor, gate: Tensor | None, *rest: Any) -> Tensor:
        from .map_kernels import forward_kernel

        whole, heads, rows = rest
        given, sizes = arguments(query, key, weight, gate, whole, heads, rows)
        batch, count, length = query.shape[:3]
        kl, teacher, student = (query.new_empty(batch, count, len(rows)) for _ in range(3))
        with torch.cuda.device_of(query):
            forward_kernel[(blocks(len(rows), TILE), batch * count)](
                *given, kl, teacher, student, heads.scaling, len(rows), length, count, **sizes
            )
        ctx.save_for_backward(*given, teacher, student)
        ctx.sizes, ctx.scaling = sizes, heads.scaling
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from .map_kernels import key_kernel, query_kernel

        *given, teacher, student = ctx.saved_tensors
        query, key, weight, gate, rows = given[2], given[3], given[4], given[5], given[7]
        batch, count, length, features = query.shape
        shared = key.shape[1]
        # Of what no row sees the gradient is 0.
        by_query, by_key, by_weight, by_gate = (
            torch.zeros_like(each, dtype=torch.float32) for each in (query, key, weight, gate)
        )
        both = *given, teacher, student, gradient.contiguous()
        sizes, parts = ctx.sizes | {"PART": min(PART, ctx.sizes["BLOCK_F"])}, blocks(features, PART)
        with torch.cuda.device_of(query):
            query_kernel[(blocks(len(rows), TILE), batch * count, parts)](
                *both, by_query, by_gate, ctx.scaling, len(rows), length, count, **sizes
            )
            key_kernel[(blocks(length, TILE), batch * shared, parts)](
                *both,
                first_rows(rows, length, sizes),
                by_key,
                by_weight,
                ctx.scaling,
                len(rows),
                length,
                shared,
                **sizes,
            )
        return by_query, by_key, by_weight, by_gate if sizes["GATED"] else None, None, None, None


def arguments(
    query: Tensor, key: Tensor, weight: Tensor, gate: Tensor | None, whole: Whole, heads: Heads, rows: Tensor
) -> tuple[list[Tensor], dict[str, Any]]:
    """What all kernels begin with, and their sizes."""
    from .flexformer.tiles import block

    # In the place of what there is not stands something that is not read.
    there = weight if heads.padding is None else (heads.padding != 0).to(torch.int8)
    mode = MODES[torch.get_float32_matmul_precision()]
    products = [each.bfloat16() if mode == "bf16" else each for each in (heads.query, heads.key, query, key)]
    given = [*products, weight, weight if gate is None else gate, there, rows]
    head_dim = heads.query.shape[-1]
    sizes = {
        "G": query.shape[1] // key.shape[1],
        "F": query.shape[-1],
        "D": head_dim,
        "W": whole.width,
        "CAUSAL": whole.causal,
        "GATED": gate is not None,
        "PADDED": heads.padding is not None,
        "MODE": mode,
        "BLOCK_M": TILE,
        "BLOCK_N": TILE,
        "BLOCK_D": block(head_dim),
        "BLOCK_F": block(query.shape[-1]),
        "num_warps": WARPS,
        # Tiles on their way from memory: of float32 there is no room for several.
        "num_stages": 1 if mode != "bf16" else 3 if query.shape[-1] <= AHEAD else 2,
    }
    return [each.contiguous() for each in given], sizes


def first_rows(rows: Tensor, length: int, sizes: dict[str, Any]) -> Tensor:
    """By block of keys, the first tile of rows that sees something of it beyond the window: rows are sorted."""
    starts = torch.arange(0, length, TILE, device=rows.device)
    if not sizes["CAUSAL"]:
        return torch.zeros_like(starts)
    return torch.searchsorted(rows, starts + sizes["W"]) // TILE * TILE


def blocks(count: int, size: int) -> int:
    return -(-count // size)
