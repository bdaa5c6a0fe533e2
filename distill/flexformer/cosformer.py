"""cosFormer: relu features, re-weighted by a cosine of the distance."""

import math

import torch
from torch import Tensor

from .feature_map import FeatureMap, HeadShape
from .t2r import FLOOR


class Cosformer(FeatureMap):
    """φ(x, i) = (relu(x) + 10⁻⁶) ⊗ [cos(πi/2M), sin(πi/2M)], so that κ_ij = relu(q_i)·relu(k_j) cos(π(i − j)/2M).

    M is `horizon`, F = 2·head_dim. Qin et al. 2022 (arXiv:2202.08791); nothing is learned. Positive only where
    |i − j| < M: the horizon has to be the longest context at least, in generation, too.
    """

    per_atom = 2
    coarse = False

    def __init__(self, shape: HeadShape, horizon: int):
        if horizon < 1:
            raise ValueError(f"mixer.horizon={horizon} must be 1 or more")
        super().__init__(shape, 2 * shape.head_dim)
        self.horizon = horizon

    def _features(self, x: Tensor, position: Tensor) -> Tensor:
        # Whole turns are taken off in integers, where they are exact, so that far positions lose no digits.
        angle = (position % (4 * self.horizon)).to(x.dtype) * (0.5 * math.pi / self.horizon)
        wave = torch.stack([angle.cos(), angle.sin()], -1)[:, None, :, None]
        return ((x.relu() + FLOOR)[..., None] * wave).flatten(-2)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return self._features(query, position)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(key, position), None
