"""Products of positive Fourier atoms: the trainable Fourier maps in a form that can be sharp."""

from functools import reduce

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project

#: A depth η = MAX_DEPTH · sigmoid(raw) stays below 1, so that every factor stays above 0.
MAX_DEPTH = 0.95


class PositiveProducts(FeatureMap):
    """κ(q, k) = Σ_m a_m Π_{g=1..G} [1 + η_mg cos(ω_mg·q − ν_mg·k + β_mg)],  a = softmax, 0 < η < 0.95.

    Positive by construction. A sum of such atoms peaks at about twice its mean and cannot be sharp; a product of
    G of them peaks at 2^G. F = M·3^G: each factor is a dot product of [1, √η cos, √η sin] with its like, and a
    product of dot products is the dot product of outer products.

    tied: ν = ω and β = 0, which is `stationary`; else query and key have their own frequencies (query ones per
    query head), and the kernel is neither stationary nor symmetric.
    """

    coarse = False

    def __init__(self, shape: HeadShape, features: int, frequency_scale: float, order: int, tied: bool):
        if order < 1:
            raise ValueError(f"mixer.order={order} must be 1 or more")
        count = atoms(features, 3**order, f"a product of order {order}")
        super().__init__(shape, count * 3**order)
        self.order, self.tied, self.per_atom = order, tied, 3**order
        # 0.05^G, of terms that come to 2^G.
        self.clear = order <= 3
        self.frequencies = ("key_frequency",) if tied else ("key_frequency", "query_frequency")
        drawn = draw_frequencies(shape.kv_heads, count * order, shape.head_dim, frequency_scale)
        self.key_frequency = nn.Parameter(drawn)
        if not tied:
            self.query_frequency = nn.Parameter(drawn.repeat_interleave(shape.group, 0))
            self.phase = nn.Parameter(torch.zeros(shape.heads, count * order))
        self.amplitude = nn.Parameter(torch.zeros(shape.heads, count))
        self.raw_depth = nn.Parameter(torch.zeros(shape.kv_heads, count * order))

    @property
    def depth(self) -> Tensor:
        """η (K, M·G)."""
        return MAX_DEPTH * self.raw_depth.sigmoid()

    def _outer(self, angle: Tensor, depth: Tensor) -> Tensor:
        """Angles and depths (…, M·G) → the outer product over the G factors of each atom, (…, M, 3^G)."""
        root = depth.sqrt()[:, None]
        factor = torch.stack([torch.ones_like(angle), root * angle.cos(), root * angle.sin()], -1)
        factor = factor.unflatten(-2, (-1, self.order))
        product = factor[..., 0, :]
        for g in range(1, self.order):
            product = (product[..., :, None] * factor[..., g, None, :]).flatten(-2)
        return product

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        group = self.shape.group
        if self.tied:
            angle = project(query, self.key_frequency.repeat_interleave(group, 0))
        else:
            angle = project(query, self.query_frequency) + self.phase[:, None]
        product = self._outer(angle, self.depth.repeat_interleave(group, 0))
        return (self.amplitude.softmax(-1)[:, None, :, None] * product).flatten(-2)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._outer(project(key, self.key_frequency), self.depth).flatten(-2), None

    def minimum(self) -> Tensor:
        """a_m Π_g (1 − η_mg), reached where every cosine of the atom is −1: (H, M)."""
        least = reduce(torch.mul, (1 - self.depth).unflatten(-1, (-1, self.order)).unbind(-1))
        least = least.repeat_interleave(self.shape.group, 0)
        return self.amplitude.softmax(-1) * least
