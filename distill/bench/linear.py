"""Causal linear attention of exponential features through `linear_kernels`, to be measured before it is used."""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..flexformer.decay import NoDecay
from ..flexformer.engine import State, Weighted, per_query_head
from ..flexformer.exponential import Exponential

#: Tokens of a chunk, features of a block that a scan takes, and the largest sizes that fit into registers.
CHUNK, SCANNED, MOST, DEEPEST = 64, 16, 256, 128
WARPS = 8


def has_kernels(mixer: Any, query: Tensor, value: Tensor) -> bool:
    """Whether there are kernels for `mixer`, a Mixer: exponential features without decay, and no window beside them."""
    return (
        query.is_cuda
        and importlib.util.find_spec("triton") is not None
        and type(mixer.map) is Exponential
        and type(mixer.decay) is NoDecay
        and not mixer.width
        and mixer.feature_dim <= MOST
        and max(query.shape[-1], value.shape[-1]) <= DEEPEST
    )


def linear_attention(
    mixer: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, present: Tensor, state: State
) -> tuple[Weighted, State]:
    """What `engine.chunked` makes of the features of q (B, H, N, D) and k (B, K, N, D), unscaled, and v (B, K, N, V).

    present (B, N) is false at padding. No gradient goes through the states.
    """
    parameters = mixer.map.query_frequency, mixer.map.query_bias, mixer.map.key_frequency, mixer.map.key_bias
    weights = tuple(mixer.key_weight.coefficients)
    # In the place of coefficients that there are not stand others that are not read.
    weights += (mixer.map.key_bias,) * (2 - len(weights))
    found, shift, *after = Linear.apply(
        query, key, value, *parameters, *weights, present, state, scaling**0.5, len(mixer.key_weight.coefficients)
    )
    return Weighted(found, per_query_head(shift, found)), State(*after)


class Linear(torch.autograd.Function):
    """→ o_i e^{−s_i} (B, H, N, V + 1), s (B, K, N), and the state after the last token."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        from ..tiles import block
        from .linear_kernels import output_kernel, scan_kernel, sums_kernel

        *parameters, present, state, scale, degree = rest
        parameters = [each.contiguous() for each in parameters]
        query, key, value = (each.contiguous() for each in (query, key, value))
        present = present.contiguous().view(torch.int8)
        batch, heads, length, head_dim = query.shape
        kv_heads, width, features = key.shape[1], value.shape[-1], parameters[0].shape[-2]
        chunks = -(-length // CHUNK)
        sizes = {
            "F": features,
            "D": head_dim,
            "V": width,
            "MODE": mode(query),
            "C": CHUNK,
            "BLOCK_F": block(features),
            "BLOCK_D": block(head_dim),
            "BLOCK_V": block(width),
            "num_warps": WARPS,
        }
        grouped = sizes | {"G": heads // kv_heads, "DEGREE": degree}
        places = batch * kv_heads
        wide = query.new_empty(0, dtype=torch.float32)
        sums, size = wide.new_empty(places, chunks, features, width), wide.new_empty(places, chunks, features)
        peaks, before = wide.new_empty(places, chunks), wide.new_empty(places, chunks)
        running, running_size = state.sums[..., :-1].contiguous().clone(), state.sums[..., -1].contiguous().clone()
        # Read from the first row, and written to the second: several programs read it.
        peak = state.maximum.flatten().repeat(2, 1).contiguous()
        out, shift = wide.new_empty(batch, heads, length, width + 1), wide.new_empty(batch, kv_heads, length)
        weighing = present, *parameters[2:], sums, size, peaks, scale
        with torch.cuda.device_of(query):
            sums_kernel[(chunks, places)](key, value, *weighing, length, kv_heads, chunks, DEGREE=degree, **sizes)
            scan_kernel[(-(-features // SCANNED), places)](
                sums, size, peaks, before, running, running_size, peak, chunks,
                F=features, V=width, BLOCK_F=SCANNED, BLOCK_V=block(width),
            )  # fmt: skip
            output_kernel[(chunks, batch * heads)](
                query, key, value, present, *parameters, sums, size, before, out, shift, scale,
                length, kv_heads, chunks, **grouped,
            )  # fmt: skip
        ctx.save_for_backward(query, key, value, present, *parameters, sums, size, before, shift, peak)
        ctx.scale, ctx.sizes, ctx.grouped, ctx.degree = scale, sizes, grouped, degree
        after = torch.cat([running, running_size[..., None]], -1), peak[1].view_as(state.maximum)
        ctx.mark_non_differentiable(shift, *after)
        return out, shift, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, *_: Any) -> Any:
        from .linear_gradients import key_gradient_kernel, later_kernel, later_scan_kernel, query_gradient_kernel

        query, key, value, present, *parameters, sums, size, before, shift, peak = ctx.saved_tensors
        batch, heads, length, _ = query.shape
        kv_heads, chunks = key.shape[1], before.shape[1]
        given, places = given.contiguous(), batch * kv_heads
        by_query, by_key, by_value = (torch.empty_like(each) for each in (query, key, value))
        by = [torch.zeros_like(each, dtype=torch.float32) for each in parameters]
        later, later_size = torch.empty_like(sums), torch.empty_like(size)
        sizes = ctx.sizes | {"G": ctx.grouped["G"]}
        end = length, kv_heads, chunks
        with torch.cuda.device_of(query):
            query_gradient_kernel[(chunks, batch * heads)](
                query, key, value, present, *parameters, sums, size, before, given, by_query, *by[:2],
                ctx.scale, *end, **ctx.grouped,
            )  # fmt: skip
            later_kernel[(chunks, places)](
                query, given, *parameters[:2], before, shift, later, later_size, ctx.scale, *end, **sizes
            )
            later_scan_kernel[(-(-sums.shape[2] // SCANNED), places)](
                later, later_size, before, peak[1], chunks,
                F=sums.shape[2], V=value.shape[-1], BLOCK_F=SCANNED, BLOCK_V=sizes["BLOCK_V"],
            )  # fmt: skip
            key_gradient_kernel[(chunks, places)](
                query, key, value, present, *parameters, later, later_size, before, given, by_key, by_value, *by[2:],
                ctx.scale, *end, **ctx.grouped,
            )  # fmt: skip
        weights = [each if number < ctx.degree else None for number, each in enumerate(by[4:])]
        return by_query, by_key, by_value, *by[:4], *weights, None, None, None, None


def mode(query: Tensor) -> str:
    """How products are made: bfloat16 would leave errors of some per cent in gradients, which are differences."""
    precise = query.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if precise else "tf32"
