"""FAVOR+: Performer's positive random features, fixed or drawn anew in training, never learned."""

import torch
from torch import Tensor

from .feature_map import FeatureMap, HeadShape, atoms, draw_frequencies, project


class Favor(FeatureMap):
    """φ(x) = F^(-1/2) exp(Ωx − |x|²/2), so that E_Ω[φ(q)·φ(k)] = exp(q·k);  Ω (K, F, D) ~ N(0, I), orthogonal.

    Choromanski et al. 2021 (arXiv:2009.14794). The features are unbounded: a query's largest exponent cancels in
    the normalisation and is dropped (beside a window it is put back), a key's is handed to the engine as a
    log-scale. (Dividing keys by the maximum over the sequence, as published code does, would look at the future and
    could not be decoded.)

    As Performer does, the frequencies are drawn anew after every `redraw_every` training steps; 0 keeps the first.
    """

    frequency: Tensor

    def __init__(self, shape: HeadShape, features: int, redraw_every: int):
        if redraw_every < 0:
            raise ValueError(f"mixer.redraw_every={redraw_every} must be 0 (never) or more")
        count = atoms(features, 1, "favor")
        super().__init__(shape, count)
        self.redraw_every = redraw_every
        self.register_buffer("frequency", self._draw())

    def _draw(self) -> Tensor:
        return draw_frequencies(self.shape.kv_heads, self.feature_dim, self.shape.head_dim, 1.0)

    @torch.no_grad()
    def redraw(self) -> None:
        self.frequency.copy_(self._draw())

    def _exponent(self, x: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
        exponent = project(x, frequency) - 0.5 * x.square().sum(-1, keepdim=True)
        return exponent, exponent.amax(-1, keepdim=True).detach()

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        exponent, top = self._exponent(query, self.frequency.repeat_interleave(self.shape.group, 0))
        return (exponent - top).exp() * self.feature_dim**-0.5

    def dropped(self, query: Tensor) -> Tensor:
        return self._exponent(query, self.frequency.repeat_interleave(self.shape.group, 0))[1].squeeze(-1)

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        exponent, top = self._exponent(key, self.frequency)
        return (exponent - top).exp() * self.feature_dim**-0.5, top.squeeze(-1)
