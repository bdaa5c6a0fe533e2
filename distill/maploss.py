"""How far a student's attention map is from its teacher's: the losses of stage 1, dense in Q × N.

P (B, K, G, Q, N) are the teacher's weights, A the student's; G query heads share each of K key-value heads. `queries`
(Q,) are the positions i that are compared, every one where it is None. Every result is per head: (H,) with H = K·G.
"""

import torch
from torch import Tensor

from .capture import Heads
from .flexformer.engine import chosen, hidden
from .flexformer.exact import exact_attention
from .flexformer.mixer import Mixer
from .flexformer.token_mixer import TokenMixer


def log_teacher(heads: Heads, queries: Tensor | None = None) -> Tensor:
    """log P, −∞ in the future of a causal attention."""
    query = chosen(heads.query, queries).float().unflatten(1, (heads.key.shape[1], -1))
    logits = query @ heads.key.float()[:, :, None].mT * heads.scaling
    return logits.masked_fill(hidden(logits, queries, heads.causal), -torch.inf).log_softmax(-1)


def log_student(mixer: Mixer, heads: Heads, queries: Tensor | None = None) -> Tensor:
    """log A of a comparable mixer, −∞ in the future of a causal attention."""
    return mixer.log_weights(heads.query, heads.key, heads.scaling, queries)


def map_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(P‖A) = Σ_j P_ij (log P_ij − log A_ij), mean over batch and queries, from log P and log A."""
    # In the future both are −∞, and their difference would be undefined.
    gap = (teacher - student).masked_fill(teacher == -torch.inf, 0)
    return (teacher.exp() * gap).sum(-1).mean((0, 3)).flatten()


def output_error(mixer: TokenMixer, heads: Heads) -> Tensor:
    """‖PV − o‖² / ‖PV‖², both summed over batch and queries, since single outputs can be arbitrarily small."""
    query, key, value = heads.query.float(), heads.key.float(), heads.value.float()
    wanted = exact_attention(query, key, value, heads.scaling, None, heads.causal)
    got, _ = mixer(query, key, value, heads.scaling)
    return (wanted - got).square().sum((0, 2, 3)) / wanted.square().sum((0, 2, 3))


def negative_share(weights: Tensor) -> Tensor:
    """Σ_j max(−S_ij, 0) / Σ_j |S_ij| of S (B, K, G, N, N), mean over batch and queries."""
    share = weights.clamp(max=0).abs().sum(-1) / weights.abs().sum(-1).clamp(min=1e-30)
    return share.mean((0, 3)).flatten()
