"""The first linear attention's map: elu + 1, nothing learned."""

from torch import Tensor

from .feature_map import FeatureMap, HeadShape


class Elu(FeatureMap):
    """φ(x) = elu(x) + 1;  F = head_dim. Katharopoulos et al. 2020 (arXiv:2006.16236)."""

    def __init__(self, shape: HeadShape):
        super().__init__(shape, shape.head_dim)

    def _features(self, x: Tensor) -> Tensor:
        # elu(x) is e^x − 1 below 0, and adding the 1 back would round small e^x to nought.
        return x.clamp(max=0).exp() + x.relu()

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return self._features(query)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._features(key), None
