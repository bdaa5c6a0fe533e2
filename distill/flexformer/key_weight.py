"""The learned log-weight of a key."""

from torch import Tensor, nn, zeros

from .feature_map import HeadShape

#: How many coefficients per head dimension each form has.
DEGREES = {"none": 0, "linear": 1, "quadratic": 2}


class KeyWeight(nn.Module):
    """w(k) = u·k (`linear`), u·k + c·k² (`quadratic`, element-wise square), or 0 (`none`).

    exp(q·k) = e^{|q|²/2} Gaussian(q − k) e^{|k|²/2}: the query's factor cancels in the normalisation, the key's
    does not, and no kernel of q − k can supply it. Unbounded; the engine's running maximum takes care of that.
    """

    def __init__(self, shape: HeadShape, form: str):
        super().__init__()
        self.coefficients = nn.ParameterList(
            nn.Parameter(zeros(shape.kv_heads, shape.head_dim)) for _ in range(DEGREES[form])
        )

    def forward(self, key: Tensor) -> Tensor:
        """(B, K, N, D) → log-weights (B, K, N)."""
        weight = key.new_zeros(key.shape[:-1])
        for power, coefficient in enumerate(self.coefficients, start=1):
            weight = weight + (key**power * coefficient[:, None]).sum(-1)
        return weight
