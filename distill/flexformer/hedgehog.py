"""Hedgehog: a softmax over learned projections and one over their negatives."""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project


class Hedgehog(FeatureMap):
    """φ(x) = [softmax(Wx + b), softmax(−Wx − b)] with its own W, b for queries and for keys;  F = 2M.

    Zhang et al. 2024 (arXiv:2402.04347), in the form of its authors' later code (LoLCATs, arXiv:2410.10254): each
    half is normalised alone, which bounds the paper's exp(±(Wx + b)) and keeps the halves of equal weight.
    Query parameters are held per query head, key parameters per key-value head; the biases are full vectors.

    W starts at the identity, as there. Atoms beyond head_dim start as rows of random rotations: copies of
    the identity's rows would get equal gradients and stay copies. With fewer atoms than head_dim all rows come from a
    rotation, so that no coordinate is left out as a whole.
    """

    frequencies = ("query_projection", "key_projection")
    per_atom = 2

    def __init__(self, shape: HeadShape, features: int):
        count = atoms(features, 2, "hedgehog")
        super().__init__(shape, 2 * count)
        drawn = nn.functional.normalize(draw_frequencies(shape.kv_heads, count, shape.head_dim, 1.0), dim=-1)
        if count >= shape.head_dim:
            drawn[:, : shape.head_dim] = torch.eye(shape.head_dim)
        self.query_projection = nn.Parameter(drawn.repeat_interleave(shape.group, 0))
        self.query_bias = nn.Parameter(torch.zeros(shape.heads, count))
        self.key_projection = nn.Parameter(drawn)
        self.key_bias = nn.Parameter(torch.zeros(shape.kv_heads, count))

    def _features(self, logit: Tensor) -> Tensor:
        return torch.stack([logit.softmax(-1), (-logit).softmax(-1)], -1).flatten(-2)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return self._features(project(query, self.query_projection) + self.query_bias[:, None])

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(project(key, self.key_projection) + self.key_bias[:, None]), None
