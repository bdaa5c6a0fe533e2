"""No map at all: queries and keys as they are."""

from torch import Tensor

from .feature_map import FeatureMap, HeadShape
from .fourier import SignedStationary


class Identity(FeatureMap):
    """φ(x) = x, so that κ(q, k) = q·k;  F = head_dim.

    What RetNet (arXiv:2307.08621), GLA (arXiv:2312.06635) and Mamba-2 (arXiv:2405.21060) use, each with a decay.
    """

    positive = False
    epsilon = SignedStationary.epsilon

    def __init__(self, shape: HeadShape):
        super().__init__(shape, shape.head_dim)

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return query

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return key, None
