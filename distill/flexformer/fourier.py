"""The paper's own maps: Fourier features with trainable frequencies, signed.

Flexformer (arXiv:2606.27748); Bochner's theorem for the stationary form, Yaglom's for the nonstationary one.
"""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project
from .products import PositiveProducts


class SignedStationary(FeatureMap):
    """φ(x) = M^(-1/2) [cos Ωx, sin Ωx], so that κ(q, k) = mean_m cos(ω_m·(q − k)).

    Ω (K, M, D) is trainable and shared by queries and keys: the kernel depends on q − k alone. F = 2M.
    Rahimi & Recht 2007; Bochner's theorem.
    """

    positive = False
    frequencies = ("frequency",)
    per_atom = 2
    unit = True
    # Weights cancel, so a denominator may be tiny by accident; a larger ε bounds what the division amplifies.
    epsilon = 1e-3

    def __init__(self, shape: HeadShape, features: int, frequency_scale: float):
        count = atoms(features, 2, "stationary")
        super().__init__(shape, 2 * count)
        self.frequency = nn.Parameter(draw_frequencies(shape.kv_heads, count, shape.head_dim, frequency_scale))

    def _features(self, x: Tensor, frequency: Tensor) -> Tensor:
        angle = project(x, frequency)
        return torch.stack([angle.cos(), angle.sin()], -1).flatten(-2) * frequency.shape[1] ** -0.5

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return self._features(query, self.frequency.repeat_interleave(self.shape.group, 0))

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(key, self.frequency), None


class SignedNonstationary(FeatureMap):
    """φ(x) = (2√M)^(-1) [cos Ω₁x + cos Ω₂x, sin Ω₁x + sin Ω₂x]; κ is no longer a function of q − k alone.

    Ω₁, Ω₂ (K, M, D) are trainable; Ω₁ = Ω₂ gives `SignedStationary` back exactly. F = 2M.
    Yaglom's theorem in the form of Remes et al. 2017 (arXiv:1705.08736).
    """

    positive = False
    frequencies = ("frequency", "partner")
    per_atom = 2
    epsilon = SignedStationary.epsilon

    def __init__(self, shape: HeadShape, features: int, frequency_scale: float):
        count = atoms(features, 2, "nonstationary")
        super().__init__(shape, 2 * count)
        self.frequency = nn.Parameter(draw_frequencies(shape.kv_heads, count, shape.head_dim, frequency_scale))
        self.partner = nn.Parameter(draw_frequencies(shape.kv_heads, count, shape.head_dim, frequency_scale))

    def _features(self, x: Tensor, frequency: Tensor, partner: Tensor) -> Tensor:
        first, second = project(x, frequency), project(x, partner)
        pair = torch.stack([first.cos() + second.cos(), first.sin() + second.sin()], -1)
        return pair.flatten(-2) * (0.5 * frequency.shape[1] ** -0.5)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        group = self.shape.group
        return self._features(
            query, self.frequency.repeat_interleave(group, 0), self.partner.repeat_interleave(group, 0)
        )

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(key, self.frequency, self.partner), None


def stationary(shape: HeadShape, features: int, frequency_scale: float, positive: bool, order: int) -> FeatureMap:
    """The stationary map: signed as in the paper, or the positive product of `order` factors."""
    if positive:
        return PositiveProducts(shape, features, frequency_scale, order, tied=True)
    return SignedStationary(shape, features, frequency_scale)


def nonstationary(shape: HeadShape, features: int, frequency_scale: float, positive: bool, order: int) -> FeatureMap:
    """The nonstationary map: signed as in the paper, or the positive product of `order` factors."""
    if positive:
        return PositiveProducts(shape, features, frequency_scale, order, tied=False)
    return SignedNonstationary(shape, features, frequency_scale)
