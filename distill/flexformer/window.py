"""The window: exact softmax over the last w tokens, joined to the linear part under one normaliser."""

import torch
from torch import Tensor, nn

from .engine import NO_KEYS, Weighted, with_ones
from .feature_map import HeadShape

#: Queries whose windows are taken from one stretch of keys.
BLOCK = 64


class Window(nn.Module):
    """S_ij = exp(q_i·k_j) for i − w < j ≤ i, and e^{gate(q_i)} times the linear part's S_ij for j ≤ i − w.

    The linear part runs w tokens behind: a key enters its state, and begins to decay, when it leaves the window.
    gate(q) = b + u·q + c·q² (element-wise square), per head and trainable: what the linear part has to be multiplied
    with to speak the same language, since the factor e^{|q|²/2} in exp(q·k) does not cancel between the two.
    """

    def __init__(self, shape: HeadShape, width: int):
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(shape.heads))
        self.coefficients = nn.ParameterList(nn.Parameter(torch.zeros(shape.heads, shape.head_dim)) for _ in range(2))

    def gate(self, query: Tensor) -> Tensor:
        """(B, H, N, D) → log-factors of the linear part (B, H, N)."""
        gate = self.bias[:, None].to(query.dtype)
        for power, coefficient in enumerate(self.coefficients, start=1):
            gate = gate + (query**power * coefficient[:, None]).sum(-1)
        return gate

    def join(self, gate: Tensor, near: Weighted, far: Weighted) -> Weighted:
        """Both parts under one shift; the gate's size goes into the shift, where it cannot overflow."""
        opened, far_shift = far.sums * (gate - gate.detach()).exp()[..., None], far.shift + gate.detach()
        shift = torch.maximum(near.shift, far_shift)
        return Weighted(
            near.sums * (near.shift - shift).exp()[..., None] + opened * (far_shift - shift).exp()[..., None], shift
        )

    def near(self, query: Tensor, key: Tensor, value: Tensor, present: Tensor) -> Weighted:
        """The exact part: q (B, H, N, D) against k, v (B, K, w + N, D), the last N of which are the queries' own.

        present (B, w + N) is false at padding. O(N w): blocks of queries meet the stretch of keys that they can see.
        """
        length, block = query.shape[2], min(BLOCK, query.shape[2])
        pad, stretch = -length % block, self.width + block
        fill = torch.nn.functional.pad
        query = fill(query.unflatten(1, (key.shape[1], -1)), (0, 0, 0, pad)).unflatten(3, (-1, block))
        key, values = (fill(x, (0, 0, 0, pad)).unfold(2, stretch, block) for x in (key, with_ones(value)))
        seen = fill(present, (0, pad)).unfold(1, stretch, block)[:, None, None, :, None]

        at, token = torch.arange(block, device=key.device)[:, None], torch.arange(stretch, device=key.device)
        logits = (query @ key[:, :, None]).masked_fill(~(band(at, token - self.width, self.width) & seen), -torch.inf)
        shift = logits.detach().amax(-1).clamp(min=NO_KEYS)
        sums = (logits - shift[..., None]).exp() @ values[:, :, None].mT
        return Weighted(sums.flatten(3, 4).flatten(1, 2)[:, :, :length], shift.flatten(3).flatten(1, 2)[:, :, :length])


def band(i: Tensor, j: Tensor, width: int) -> Tensor:
    """True where token j is among the last `width` up to token i."""
    return (j <= i) & (j > i - width)
