"""Decay: how a key's weight falls with every token that follows it, L_ij = Π_{t=j+1..i} γ_t.

Every form takes keys (B, K, N, D) and returns log γ (B, K, N, R), and the log-weight (B, K, N) that it gives a key
besides, None where it gives none. R groups of features decay each at their own rate.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from .feature_map import HeadShape

#: log γ of a past that is as good as forgotten; sums of anything lower would lose the digits of what is remembered.
FORGOTTEN = -50.0
#: Tokens after which weights have halved when training starts: the slowest group, and the fastest.
SLOWEST, FASTEST = 4096.0, 16.0


class Decay(nn.Module):
    """erases: a key also takes out of the state what stands in its own place, see `delta`."""

    erases = False


class NoDecay(Decay):
    """γ = 1: a key weighs the same however long ago it was."""

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        return key.new_zeros(*key.shape[:-1], 1), None


class FixedDecay(Decay):
    """γ_h = 1 − 2^{−5−h} for key-value head h, never trained. RetNet, Sun et al. 2023 (arXiv:2307.08621)."""

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        head = torch.arange(key.shape[1], dtype=key.dtype, device=key.device)
        log_gamma = torch.log1p(-torch.exp2(-5 - head))
        return log_gamma[:, None, None].expand(*key.shape[:-1], 1), None


class LearnedDecay(Decay):
    """γ_r = exp(−e^{a_r}), one trainable rate per key-value head and group."""

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()
        self.log_rate = nn.Parameter((math.log(2) / half_lives(groups)).log().expand(shape.kv_heads, groups).clone())

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        log_gamma = -self.log_rate.to(key.dtype).exp()
        return log_gamma[:, None].expand(*key.shape[:-1], -1), None


class GatedDecay(Decay):
    """γ_r = σ(u_r·k + b_r)^{1/τ}, τ = 16: each token decides by its key how much of the past is kept.

    Gated linear attention, Yang et al. 2024 (arXiv:2312.06635), which makes its gates of the layer's input.
    """

    #: τ
    TEMPERATURE = 16.0

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()
        kept = torch.exp2(-self.TEMPERATURE / half_lives(groups))
        self.direction = nn.Parameter(torch.zeros(shape.kv_heads, groups, shape.head_dim))
        self.bias = nn.Parameter(kept.logit().expand(shape.kv_heads, groups).clone())

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        gate = key @ self.direction.to(key.dtype).mT + self.bias[:, None]
        return logsigmoid(gate) / self.TEMPERATURE, None


class SelectiveDecay(Decay):
    """γ = exp(−e^a Δ) and a weight Δ for the key itself, Δ = softplus(u·k + b).

    Mamba-2 as state-space duality writes it, Dao & Gu 2024 (arXiv:2405.21060), which makes Δ of the layer's input.
    Heads start with different memories, as a recurrent model's do.
    """

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(shape.kv_heads, shape.head_dim))
        self.bias = nn.Parameter(inverse_softplus(math.log(2) / half_lives(shape.kv_heads)))
        self.log_rate = nn.Parameter(torch.zeros(shape.kv_heads))

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        gate = (key * self.direction[:, None]).sum(-1) + self.bias[:, None]
        return -(self.log_rate.to(key.dtype).exp()[:, None] * softplus(gate))[..., None], log_softplus(gate)


class DeltaDecay(Decay):
    """γ = exp(−softplus(u·k + a)), and β = σ(s·k + c), the share of its own place in the state that a key writes anew.

    L_ij is a matrix here, Π_{t=j+1..i} γ_t (I − β_t φ_t φ_tᵀ), see `delta`. Heads start with different memories.
    """

    erases = True

    def __init__(self, shape: HeadShape, groups: int):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(shape.kv_heads, shape.head_dim))
        self.bias = nn.Parameter(inverse_softplus(math.log(2) / half_lives(shape.kv_heads)))
        self.share_direction = nn.Parameter(torch.zeros(shape.kv_heads, shape.head_dim))
        self.share_bias = nn.Parameter(torch.zeros(shape.kv_heads))

    def forward(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        fade = (key * self.direction[:, None]).sum(-1) + self.bias[:, None]
        share = (key * self.share_direction[:, None]).sum(-1) + self.share_bias[:, None]
        return -softplus(fade)[..., None], logsigmoid(share)


#: Every form by the name that configurations use, and those that take groups.
DECAYS: dict[str, Callable[[HeadShape, int], Decay]] = {
    "none": NoDecay,
    "fixed": FixedDecay,
    "learned": LearnedDecay,
    "gated": GatedDecay,
    "selective": SelectiveDecay,
    "delta": DeltaDecay,
}
GROUPED = ("learned", "gated")


def log_softplus(x: Tensor) -> Tensor:
    """log log(1 + e^x), which is x where e^x is too small to be told from nought."""
    small = x < -30
    return torch.where(small, x, softplus(x.masked_fill(small, 0)).log())


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y."""
    return y + (-torch.expm1(-y)).log()


def half_lives(count: int) -> Tensor:
    """From slowest to fastest, in equal ratios: (count,)."""
    return torch.logspace(math.log2(SLOWEST), math.log2(FASTEST), count, base=2)


def build_decay(shape: HeadShape, form: str, groups: int, atoms: int) -> Decay:
    """The decay `form` of features that `atoms` atoms make; ValueError for groups that they cannot form."""
    if atoms % groups:
        raise ValueError(
            f"mixer.decay_groups={groups} must divide the map's {atoms} atoms; change it or mixer.features"
        )
    return DECAYS[form](shape, groups)
