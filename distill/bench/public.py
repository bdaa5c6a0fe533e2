"""Linear attention by a public package of kernels, as a rival: flash-linear-attention, `pip install distill[bench]`."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..capture import Heads
from ..flexformer.decay import NoDecay
from ..flexformer.mixer import Mixer
from ..flexformer.precision import scaled


def takes(mixer: Mixer, heads: Heads) -> bool:
    """Whether the package is there, on a GPU, and knows what `mixer` has: sums, divided by those of weights."""
    plain = mixer.comparable and mixer.width == 0 and type(mixer.decay) is NoDecay
    return heads.query.is_cuda and plain and find_spec("fla") is not None


def attention(mixer: Mixer, heads: Heads) -> Tensor:
    """Outputs (B, H, N, D) of features that the compiler fuses, in the dtype of the queries."""
    from fla.ops.linear_attn import chunk_linear_attn

    query, key = compiled_features()(mixer, heads.query, heads.key, heads.scaling)
    group = query.shape[1] // key.shape[1]
    wide = (each.repeat_interleave(group, 1) if group > 1 else each for each in (key, heads.value))
    # Of tokens, heads, numbers.
    given = (each.transpose(1, 2).contiguous() for each in (query, *wide))
    out, _ = chunk_linear_attn(*given, scale=1.0, normalize=True)
    found: Tensor = out.transpose(1, 2)
    return found


@cache
def compiled_features() -> Any:
    """Made when it is needed, since to load the compiler takes seconds, and once for all lengths."""
    return torch.compile(features, dynamic=True)


def features(mixer: Mixer, query: Tensor, key: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """φ_q and e^{w} φ_k; of weights as they are, which the package has no running maximum for."""
    position = torch.arange(key.shape[2], device=key.device).expand(len(key), -1)
    present = torch.ones_like(position, dtype=torch.bool)
    made = mixer.features(scaled(query, scaling), position, scaled(key, scaling), position, present)
    return made.query.to(query.dtype), (made.key * made.log_weight.exp()[..., None]).to(key.dtype)
