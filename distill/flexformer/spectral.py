"""Spectral features: trainable complex frequencies, real part for the amplitude, imaginary part for the phase."""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project
from .products import MAX_DEPTH


class Spectral(FeatureMap):
    """κ(q, k) = Σ_m s_m(q) t_m(k) [1 + η_m cos(ω_m·q − ν_m·k + β_m)],  s, t softmax amplitudes as in `Exponential`.

    η = 0 is `Exponential`; constant amplitudes are, up to a factor, the order-1 `PositiveProducts` with equal a.
    Positive and bounded. F = 3M: φ_q = s ⊗ [1, √η cos(ωq + β), √η sin(ωq + β)] and φ_k = t ⊗ [1, √η cos νk, √η sin νk].

    `frequency_scale` is the standard deviation of the initial phase frequencies, `amplitude_scale` that of the
    initial amplitude ones; these may start from centroids of the keys instead, as in `Exponential`.
    """

    frequencies = ("query_frequency", "key_frequency")
    per_atom = 3

    def __init__(self, shape: HeadShape, features: int, frequency_scale: float, amplitude_scale: float):
        count = atoms(features, 3, "spectral")
        super().__init__(shape, 3 * count)
        self.centroids = count
        amplitude = draw_frequencies(shape.kv_heads, count, shape.head_dim, amplitude_scale)
        phase = draw_frequencies(shape.kv_heads, count, shape.head_dim, frequency_scale)
        # One projection serves both parts of a side: rows [0, M) are amplitudes, [M, 2M) phases.
        drawn = torch.cat([amplitude, phase], 1)
        self.query_frequency = nn.Parameter(drawn.repeat_interleave(shape.group, 0))
        self.query_bias = nn.Parameter(torch.zeros(shape.heads, 2 * count))
        self.key_frequency = nn.Parameter(drawn)
        self.key_bias = nn.Parameter(torch.zeros(shape.kv_heads, count))
        self.raw_depth = nn.Parameter(torch.zeros(shape.kv_heads, count))

    @property
    def depth(self) -> Tensor:
        """η (K, M)."""
        return MAX_DEPTH * self.raw_depth.sigmoid()

    @torch.no_grad()
    def place(self, centroids: Tensor) -> None:
        self.query_frequency[:, : self.centroids] = centroids.repeat_interleave(self.shape.group, 0)
        self.key_frequency[:, : self.centroids] = centroids
        self.key_bias.copy_(-0.5 * centroids.square().sum(-1))

    def _features(self, amplitude: Tensor, angle: Tensor, depth: Tensor) -> Tensor:
        amplitude = amplitude.softmax(-1)
        wave = amplitude * depth.sqrt()[:, None]
        return torch.stack([amplitude, wave * angle.cos(), wave * angle.sin()], -1).flatten(-2)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        amplitude, angle = (project(query, self.query_frequency) + self.query_bias[:, None]).chunk(2, -1)
        return self._features(amplitude, angle, self.depth.repeat_interleave(self.shape.group, 0))

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        amplitude, angle = project(key, self.key_frequency).chunk(2, -1)
        return self._features(amplitude + self.key_bias[:, None], angle, self.depth), None
