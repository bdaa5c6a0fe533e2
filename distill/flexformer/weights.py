"""The attention weights of a mixer themselves, for those who compare them with softmax's: whole texts, in rows of N."""

from typing import NamedTuple

import torch
from torch import Tensor

from .engine import Features, chosen, grouped, log_scores, scores
from .window import band


class Whole(NamedTuple):
    """What the weights of whole texts are made of.

    features: of the linear part, its keys `width` tokens late. query (B, H, N, D) and key (B, K, N, D): scaled. seen
    (B, N): the keys that the window can see. gate (B, H, N): what the logarithm of the linear part's weights is raised
    by beside a window, None without one. least (H, M): see `engine.log_scores`.
    """

    features: Features
    query: Tensor
    key: Tensor
    seen: Tensor
    gate: Tensor | None
    width: int
    least: Tensor | None
    causal: bool

    def until(self, end: int) -> "Whole":
        """The same of the first `end` keys: all that queries before `end` can see of a causal mixer."""
        features = self.features
        cut = Features(
            features.query, features.key[:, :, :end], features.log_weight[:, :, :end], features.log_decay[:, :, :end]
        )
        return self._replace(features=cut, key=self.key[:, :, :end], seen=self.seen[:, :end])


def log_weights(whole: Whole, queries: Tensor | None = None) -> Tensor:
    """log A (B, K, G, Q, N) of the positions `queries`, all where None; −∞ in the future of a causal mixer.

    Of comparable mixers. Of a query that sees nothing but padding all are undefined.
    """
    logs = log_scores(whole.features, queries, whole.least, whole.causal)
    if whole.gate is not None:
        near, inside, gate = _beside(whole, queries)
        logs = torch.where(inside, near, _undelayed(logs, whole.width, -torch.inf) + gate)
    return logs.log_softmax(-1)


def weights(whole: Whole) -> Tensor:
    """S (B, K, G, N, N) up to a factor above 0 in each row, also where it is negative."""
    far, shift = scores(whole.features, whole.causal)
    if whole.gate is None:
        return far
    near, inside, gate = _beside(whole, None)
    near = near.masked_fill(~inside, -torch.inf)
    shift = shift[:, :, None, :, None] + gate
    top = torch.maximum(near.amax(-1, keepdim=True), shift).detach()
    return (near - top).exp() + _undelayed(far, whole.width, 0.0) * (shift - top).exp()


def _beside(whole: Whole, queries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Exact logits (B, K, G, Q, N), which of them are inside the window, and the gate (B, K, G, Q, 1)."""
    query, key = chosen(whole.query, queries), whole.key
    assert whole.gate is not None
    token = torch.arange(key.shape[2], device=key.device)
    inside = band((token if queries is None else queries)[:, None], token, whole.width)
    logits = grouped(query, key) @ key[:, :, None].mT
    return logits, inside & whole.seen[:, None, None, None], grouped(chosen(whole.gate, queries), key)[..., None]


def _undelayed(x: Tensor, width: int, fill: float) -> Tensor:
    """(…, N) in the linear part's time, where token j stands in column j + w, to the tokens' own."""
    return torch.nn.functional.pad(x[..., width:], (0, min(width, x.shape[-1])), value=fill)
