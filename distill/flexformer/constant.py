"""The controls: attention that does not look at the query, and none."""

import torch
from torch import Tensor

from .feature_map import FeatureMap, HeadShape


class Constant(FeatureMap):
    """φ(x) = 1;  F = 1. The running mean of the values; with a key weight, attention that ignores the query."""

    def __init__(self, shape: HeadShape):
        super().__init__(shape, 1)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return query.new_ones(*query.shape[:-1], 1)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return key.new_ones(*key.shape[:-1], 1), None


class Zero(FeatureMap):
    """φ(x) = 0;  F = 1. The output is nought: what is left is the window, or a layer without attention.

    Keys have the weight 0, too, or the window's weights would be scaled by what is not there, and could vanish.
    """

    positive = False

    def __init__(self, shape: HeadShape):
        super().__init__(shape, 1)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return query.new_zeros(*query.shape[:-1], 1)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return key.new_zeros(*key.shape[:-1], 1), key.new_full(key.shape[:-1], -torch.inf)
