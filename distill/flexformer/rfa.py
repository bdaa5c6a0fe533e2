"""Random feature attention: Fourier features of unit vectors, the draw fixed and its width learned."""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project
from .fourier import SignedStationary


class Rfa(FeatureMap):
    """φ(x) = M^(-1/2) [cos Ω(σ∘x̂), sin Ω(σ∘x̂)] with x̂ = x/|x|, so that E_Ω[κ(q, k)] = exp(−|σ∘(q̂ − k̂)|²/2). F = 2M.

    Peng et al. 2021 (arXiv:2103.02143). Unit vectors make the Gaussian a softmax kernel: with all of σ at τ^(-1/2)
    it is exp(q̂·k̂/τ) up to a constant. The paper draws a frequency as σ∘ω with ω ~ N(0, I): only σ (K, D) is
    learned, itself and not its logarithm, from 1. Ω (K, M, D) is drawn once, in orthogonal blocks, which leaves the
    expectation and lowers the variance.
    """

    positive = False
    # Ω is fixed in any case; without σ nothing of the kernel is learned.
    frequencies = ("scale",)
    per_atom = 2
    epsilon = SignedStationary.epsilon

    frequency: Tensor

    def __init__(self, shape: HeadShape, features: int):
        count = atoms(features, 2, "rfa")
        super().__init__(shape, 2 * count)
        self.register_buffer("frequency", draw_frequencies(shape.kv_heads, count, shape.head_dim, 1.0))
        self.scale = nn.Parameter(torch.ones(shape.kv_heads, shape.head_dim))

    def _features(self, x: Tensor, frequency: Tensor, scale: Tensor) -> Tensor:
        angle = project(scale[:, None] * nn.functional.normalize(x, dim=-1), frequency)
        return torch.stack([angle.cos(), angle.sin()], -1).flatten(-2) * frequency.shape[1] ** -0.5

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        group = self.shape.group
        return self._features(query, self.frequency.repeat_interleave(group, 0), self.scale.repeat_interleave(group, 0))

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(key, self.frequency, self.scale), None
