"""Linear attention that sees both directions: one state for the whole text, and so O(N) without chunks."""

from torch import Tensor

from .engine import NO_KEYS, Features, State, Weighted, grouped, per_query_head, with_ones


def everywhere(features: Features, value: Tensor, state: State | None = None) -> tuple[Weighted, State]:
    """o_i e^{−m} = φ_q(q_i) S with S = Σ_j e^{w_j − m} φ_k(k_j) [v_j, 1]ᵀ and m = max_j w_j, over all tokens j.

    Of features without decay; m is detached, and a key that is padding has w = −∞. The text is whole: nothing comes
    before it, and `state` is not looked at.
    """
    maximum = features.log_weight.detach().amax(-1, keepdim=True).clamp(min=NO_KEYS)
    weighted = features.key * (features.log_weight - maximum).exp()[..., None]
    sums = weighted.mT @ with_ones(value)
    out = (grouped(features.query, features.key) @ sums[:, :, None]).flatten(1, 2)
    return Weighted(out, per_query_head(maximum.expand(-1, -1, value.shape[2]), out)), State(sums, maximum)
