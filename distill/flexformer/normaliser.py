"""What turns the weighted sum Σ_j S_ij [v_j, 1] into the output."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .feature_map import HeadShape


class RowSum(nn.Module):
    """o_i = Σ_j S_ij v_j / z_i, z_i = Σ_j S_ij: weights that sum to one, as softmax's do."""

    #: The outputs are means of the values, under weights that can be compared with softmax's.
    averages = True

    def __init__(self, shape: HeadShape, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, sums: Tensor) -> Tensor:
        """(B, H, N, D+1) → (B, H, N, D)."""
        return divide(sums, self.epsilon)


class RootMeanSquare(nn.Module):
    """o_i = g ⊙ y_i / √(mean(y_i²) + 10⁻⁶), y_i = e^{−s_i} Σ_j S_ij v_j, with a trainable gain g (H, D) per head.

    s_i is the engine's shift: ε is relative to the largest weight that query i can give.

    RetNet's and Mamba's way: group norm without its mean, a group being a head.
    """

    averages = False

    def __init__(self, shape: HeadShape, epsilon: float):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape.heads, shape.head_dim))

    def forward(self, sums: Tensor) -> Tensor:
        """(B, H, N, D+1) → (B, H, N, D)."""
        y = sums[..., :-1]
        return self.gain[:, None].to(y.dtype) * y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


#: Every form by the name that configurations use.
NORMALISERS: dict[str, Callable[[HeadShape, float], nn.Module]] = {"sum": RowSum, "norm": RootMeanSquare}


def build_normaliser(shape: HeadShape, form: str, epsilon: float) -> nn.Module:
    """The normaliser `form`; ε is the feature map's, for the denominator rule."""
    return NORMALISERS[form](shape, epsilon)


def divide(sums: Tensor, epsilon: float) -> Tensor:
    """[Σ S v, z] (…, D+1) → Σ S v / z, with |z| < ε replaced by ±ε; a row without keys gives 0."""
    numerator, z = sums[..., :-1], sums[..., -1:]
    # Not copysign, which ONNX has no word for.
    least = torch.full_like(z, epsilon)
    return numerator / torch.where(z.abs() >= epsilon, z, torch.where(z < 0, -least, least))
