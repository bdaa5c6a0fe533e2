"""T2R: a learned projection through relu."""

import torch
from torch import Tensor, nn

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project

#: Added to relu features: a row of them can be nought, and the map loss needs the kernel's logarithm.
FLOOR = 1e-6


class T2r(FeatureMap):
    """φ(x) = relu(Wx + b) + 10⁻⁶ with its own W, b for queries (per query head) and for keys (per key-value head).

    Kasai et al. 2021 (arXiv:2103.13076), where queries and keys share W and b. Both start from one draw
    W ~ N(0, 2/F) with b = 0: half of the features are alive, and whatever F, κ(x, x) is |x|² in the mean and κ falls
    monotonically with the angle between query and key (the arc-cosine kernel of Cho & Saul 2009).
    """

    frequencies = ("query_projection", "key_projection")

    def __init__(self, shape: HeadShape, features: int):
        count = atoms(features, 1, "t2r")
        super().__init__(shape, count)
        drawn = draw_frequencies(shape.kv_heads, count, shape.head_dim, (2 / count) ** 0.5)
        self.query_projection = nn.Parameter(drawn.repeat_interleave(shape.group, 0))
        self.query_bias = nn.Parameter(torch.zeros(shape.heads, count))
        self.key_projection = nn.Parameter(drawn)
        self.key_bias = nn.Parameter(torch.zeros(shape.kv_heads, count))

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return (project(query, self.query_projection) + self.query_bias[:, None]).relu() + FLOOR

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return (project(key, self.key_projection) + self.key_bias[:, None]).relu() + FLOOR, None
