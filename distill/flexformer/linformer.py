"""Linformer: softmax attention to a few mixtures of the tokens instead of to the tokens."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .feature_map import HeadShape, atoms
from .memory import Memory
from .precision import at_least_float32
from .token_mixer import TokenMixer


class Linformer(TokenMixer):
    """o = softmax(q (E k)ᵀ · scaling) (F v) with learned E, F (K, `features`, `length`), per key-value head.

    Wang et al. 2020 (arXiv:2006.04768), without its sharing of E and F between heads or layers. Bidirectional alone:
    every row of E k holds all tokens. The n-th real token of a text goes with the n-th column, so that `length` is a
    maximum and shorter texts use the first columns; the f-th mixture takes part once a text has reached the f-th of
    `features` equal stretches of the columns, or empty mixtures would share the weights. Padding adds nothing on either
    side. E = F = I at full rank is softmax.

    E and F start as means over stretches of neighbouring tokens, from which they learn faster than from the paper's
    random ones. They are held times `length`: a row sums over all tokens, and with steps of the size that suits other
    mixers' parameters it would be thrown far off at once.
    """

    def __init__(self, shape: HeadShape, features: int, length: int):
        if length < 1:
            raise ValueError(f"mixer.length={length} must be 1 or more tokens")
        # More mixtures than tokens say nothing new.
        count = min(atoms(features, 1, "linformer"), length)
        super().__init__(shape, count)
        self.length = length
        self.key_projection = nn.Parameter(length * _pooling(count, length).repeat(shape.kv_heads, 1, 1))
        self.value_projection = nn.Parameter(self.key_projection.detach().clone())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        padding: Tensor | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, None]:
        length = key.shape[2]
        if memory is not None:
            raise ValueError("a linformer reads a text whole, and has no memory to go on from")
        if length > self.length:
            raise ValueError(f"a text of {length} tokens is longer than mixer.length={self.length}")
        with torch.autocast(query.device.type, enabled=False):
            query, wide_key, wide_value = (at_least_float32(x) for x in (query, key, value))
            reached = torch.full((len(key), 1), length, device=key.device)
            if padding is not None:
                wide_key, wide_value = (_real_first(x, padding != 0) for x in (wide_key, wide_value))
                reached = (padding != 0).sum(1, keepdim=True)
            # A text of nothing but padding has its first mixture, whose value is 0.
            begun = _starts(self.feature_dim, self.length, key.device) < reached.clamp(min=1)
            keys = self.key_projection[:, :, :length].to(query.dtype) @ wide_key / self.length
            values = self.value_projection[:, :, :length].to(query.dtype) @ wide_value / self.length
            shared, seen = self.shape.group > 1, begun[:, None, None]
            out = scaled_dot_product_attention(query, keys, values, seen, scale=scaling, enable_gqa=shared)
        return out.to(value.dtype), None


def _pooling(count: int, length: int) -> Tensor:
    """(count, length): row f is the mean over the f-th of `count` stretches of tokens."""
    stretch = torch.arange(length) * count // length
    member = torch.nn.functional.one_hot(stretch, count).float().T
    return member / member.sum(1, keepdim=True)


def _starts(count: int, length: int, device: torch.device) -> Tensor:
    """The first column of each of `count` stretches: (count,)."""
    return (torch.arange(count, device=device) * length + count - 1) // count


def _real_first(x: Tensor, real: Tensor) -> Tensor:
    """x (B, K, N, D) with each text's real tokens moved to its front in their order, and zeros behind them."""
    order = (~real).byte().argsort(dim=-1, stable=True)
    return (x * real[:, None, :, None]).take_along_dim(order[:, None, :, None], 2)
