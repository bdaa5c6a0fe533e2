"""The contract that every mixer keeps."""

from torch import Tensor, nn

from .feature_map import HeadShape


class TokenMixer(nn.Module):
    """What stands in an attention layer in softmax's place.

    forward(query, key, value, scaling, padding=None, memory=None) → (o, memory): q (B, H, N, D), k and v (B, K, N, D)
    → o (B, H, N, D) in the dtype of v. `scaling` is softmax's, padding (B, N) is 0 at padding, and `memory` is what a
    call before this one returned, None of a mixer that cannot go on. Where `averages`, the weights themselves can be
    had: `scores`, and where `comparable`, `log_weights`.
    """

    #: Tokens of exact softmax beside the rest.
    width = 0

    def __init__(self, shape: HeadShape, feature_dim: int):
        super().__init__()
        self.shape, self.feature_dim = shape, feature_dim

    @property
    def comparable(self) -> bool:
        """Weights are above 0 and sum to one: KL(softmax‖student) is defined."""
        return False

    @property
    def averages(self) -> bool:
        """The outputs are means of the values, under weights that can be compared with softmax's."""
        return False

    @property
    def centroids(self) -> int:
        """How many points of key space `place` takes; 0 for a mixer whose parameters are no such points."""
        return 0

    def place(self, centroids: Tensor) -> None:
        """Start from these points among the scaled keys, (K, `centroids`, D), instead of from the draw."""
        raise TypeError(f"{type(self).__name__} has nothing to place")
