"""FAVOR+: Performer's positive random features, drawn once and kept. The fixed baseline."""

from torch import Tensor

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project


class Favor(FeatureMap):
    """φ(x) = F^(-1/2) exp(Ωx − |x|²/2), so that E_Ω[φ(q)·φ(k)] = exp(q·k);  Ω (K, F, D) ~ N(0, I), orthogonal.

    Choromanski et al. 2021 (arXiv:2009.14794). The features are unbounded: a query's largest exponent cancels in
    the normalisation and is dropped, a key's is handed to the engine as a log-scale. (Dividing keys by the
    maximum over the sequence, as published code does, would look at the future and could not be decoded.)
    """

    frequency: Tensor

    def __init__(self, shape: HeadShape, features: int):
        count = atoms(features, 1, "favor")
        super().__init__(shape, count)
        self.register_buffer("frequency", draw_frequencies(shape.kv_heads, count, shape.head_dim, 1.0))

    def _exponent(self, x: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
        exponent = project(x, frequency) - 0.5 * x.square().sum(-1, keepdim=True)
        return exponent, exponent.amax(-1, keepdim=True).detach()

    def query_features(self, query: Tensor) -> Tensor:
        exponent, top = self._exponent(query, self.frequency.repeat_interleave(self.shape.group, 0))
        return (exponent - top).exp() * self.feature_dim**-0.5

    def key_features(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        exponent, top = self._exponent(key, self.frequency)
        return (exponent - top).exp() * self.feature_dim**-0.5, top.squeeze(-1)
