"""Exponential features: trainable frequencies on the imaginary axis, the Laplace counterpart of Fourier ones."""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project


class Exponential(FeatureMap):
    """φ_q(x) = softmax_m(ω_m·x + b_m),  φ_k(x) = softmax_m(ν_m·x + c_m);  F = M.

    Positive and bounded by 1, so κ ∈ (0, 1] needs no running maximum. Query parameters are held per query head,
    key parameters per key-value head; both start from one draw, so that the untrained kernel already favours
    keys that resemble the query, or better from centroids μ_m of the keys: with ω_m = ν_m = μ_m, b = 0 and
    c_m = −|μ_m|²/2, φ_q is the query's softmax attention to the centroids and φ_k the centroids' responsibility for
    the key.
    """

    frequencies = ("query_frequency", "key_frequency")

    def __init__(self, shape: HeadShape, features: int, frequency_scale: float):
        count = atoms(features, 1, "exponential")
        super().__init__(shape, count)
        self.centroids = count
        drawn = draw_frequencies(shape.kv_heads, count, shape.head_dim, frequency_scale)
        self.query_frequency = nn.Parameter(drawn.repeat_interleave(shape.group, 0))
        self.query_bias = nn.Parameter(torch.zeros(shape.heads, count))
        self.key_frequency = nn.Parameter(drawn)
        self.key_bias = nn.Parameter(torch.zeros(shape.kv_heads, count))

    @torch.no_grad()
    def place(self, centroids: Tensor) -> None:
        self.query_frequency.copy_(centroids.repeat_interleave(self.shape.group, 0))
        self.key_frequency.copy_(centroids)
        self.key_bias.copy_(-0.5 * centroids.square().sum(-1))

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return (project(query, self.query_frequency) + self.query_bias[:, None]).softmax(-1)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return (project(key, self.key_frequency) + self.key_bias[:, None]).softmax(-1), None
