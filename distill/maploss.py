"""How far a student's attention map is from its teacher's: the losses of stage 1, dense in R × N.

P (B, K, G, R, N) are the teacher's weights, κ the student's kernel, A_ij = e^{w_j} κ_ij / Σ_{j ≤ i} e^{w_j} κ_ij its
weights; G query heads share each of K key-value heads. `queries` (R,) are the positions i that are compared, every
one where it is None. Every result is per head: (H,) with H = K·G.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .flexformer.engine import Features, chunked, future, kernel, scores
from .flexformer.mixer import Mixer
from .teacher import Heads


def log_teacher(heads: Heads, queries: Tensor | None = None) -> Tensor:
    """log P, −∞ in the future."""
    query = chosen(heads.query, queries).float().unflatten(1, (heads.key.shape[1], -1))
    logits = query @ heads.key.float()[:, :, None].mT * heads.scaling
    return logits.masked_fill(hidden(logits, queries), -torch.inf).log_softmax(-1)


def log_student(mixer: Mixer, features: Features, queries: Tensor | None = None) -> Tensor:
    """log A of a positive map, −∞ in the future.

    Rounding can take a kernel near its minimum below it, where the logarithm would be wrong or undefined.
    """
    features = features._replace(query=chosen(features.query, queries))
    kappa, least = kernel(features), mixer.map.minimum()
    if isinstance(least, Tensor):
        kappa = torch.maximum(kappa, least.unflatten(0, kappa.shape[1:3]))
    logits = kappa.clamp(min=torch.finfo(kappa.dtype).tiny).log() + features.log_weight[:, :, None, None]
    return logits.masked_fill(hidden(logits, queries), -torch.inf).log_softmax(-1)


def chosen(query: Tensor, queries: Tensor | None) -> Tensor:
    return query if queries is None else query.index_select(2, queries)


def hidden(logits: Tensor, queries: Tensor | None) -> Tensor:
    """(R, N), true where a key lies in its query's future."""
    length = logits.shape[-1]
    mask = future(length, logits.device)
    return mask if queries is None else mask[queries]


def map_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(P‖A) = Σ_j P_ij (log P_ij − log A_ij), mean over batch and queries, from log P and log A."""
    # In the future both are −∞, and their difference would be undefined.
    gap = (teacher - student).masked_fill(teacher == -torch.inf, 0)
    return (teacher.exp() * gap).sum(-1).mean((0, 3)).flatten()


def output_error(heads: Heads, features: Features) -> Tensor:
    """‖(P − A)V‖² / ‖PV‖², both summed over batch and queries, since single outputs can be arbitrarily small."""
    query, key, value = heads.query.float(), heads.key.float(), heads.value.float()
    grouped = query.shape[1] != key.shape[1]
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True, scale=heads.scaling, enable_gqa=grouped)
    got, _ = chunked(features, value)
    return (wanted - got).square().sum((0, 2, 3)) / wanted.square().sum((0, 2, 3))


def negative_share(features: Features) -> Tensor:
    """Σ_j max(−S_ij, 0) / Σ_j |S_ij|, mean over batch and queries."""
    weights = scores(features)
    share = weights.clamp(max=0).abs().sum(-1) / weights.abs().sum(-1).clamp(min=1e-30)
    return share.mean((0, 3)).flatten()
