"""A step of decoding as one kernel, where there is one for it: on a GPU, of exponential features."""

from typing import Any

import torch
from torch import Tensor

from .attempt import attempt, exported, possible
from .decay import FORGOTTEN, LearnedDecay, NoDecay
from .engine import NO_KEYS
from .exponential import Exponential
from .memory import Memory
from .normaliser import RowSum
from .parameters import parameters

try:
    from .step_kernel import next_power_of_2, step_kernel
except (ImportError, OSError):  # No Triton for this machine, or no source for it to read: PyTorch does it.
    step_kernel = None

#: Features, tokens of a window and dimensions of a head, all of which are held at once; and how many query heads may
#: share a key-value head, one after another, before that takes too long.
MOST, WIDEST, DEEPEST, MOST_SHARED = 256, 256, 128, 8
#: What the kernel is for.
WHAT = "decoding"
#: Numbers of a tile that a warp holds.
HELD = 2048


def has_kernel(mixer: Any, query: Tensor, value: Tensor) -> bool:
    """Whether one kernel does this step of `mixer`, a Mixer with all its parts: without gradients, not in float64."""
    return (
        step_kernel is not None
        and possible(WHAT)
        and query.is_cuda
        and not torch.is_grad_enabled()
        and not exported()
        and query.dtype != torch.float64
        and mixer.parts >= {"linear", "window"}
        and type(mixer.map) is Exponential
        and type(mixer.decay) in (NoDecay, LearnedDecay)
        and type(mixer.normaliser) is RowSum
        and mixer.feature_dim <= MOST
        and mixer.width <= WIDEST
        and mixer.shape.group <= MOST_SHARED
        and max(query.shape[-1], value.shape[-1]) <= DEEPEST
    )


def one_step(
    mixer: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, padding: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory] | None:
    """What `Mixer.forward` does with one token, q (B, H, 1, D), k and v (B, K, 1, D).

    None where the kernel cannot be built.
    """
    if torch.compiler.is_compiling():
        # The compiler builds it, and it is a part of what it captures.
        return launched(mixer, query, key, value, scaling, padding, memory)
    with torch.cuda.device_of(query):
        return attempt(WHAT, lambda: launched(mixer, query, key, value, scaling, padding, memory))


def launched(
    mixer: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, padding: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    batch, heads, _, head_dim = query.shape
    kv_heads, width = key.shape[1], value.shape[-1]
    old = Memory(*(part.contiguous() for part in memory))
    new = Memory(*(torch.empty_like(part) for part in old))
    out = value.new_empty(batch, heads, 1, width)
    features, near = next_power_of_2(mixer.feature_dim), next_power_of_2(max(1, mixer.width - 1))
    largest = max(features, near) * next_power_of_2(max(head_dim, width))
    decays = isinstance(mixer.decay, LearnedDecay)
    # In the place of what there is not stands something that is not read.
    real = mixer.map.key_bias if padding is None else padding != 0
    step_kernel[(batch * kv_heads,)](
        *(part.contiguous() for part in (query, key, value)),
        real,
        out,
        *old,
        *new,
        *parameters(mixer),
        mixer.decay.log_rate if decays else mixer.map.key_bias,
        scaling**0.5,
        mixer.map.epsilon,
        K=kv_heads,
        G=heads // kv_heads,
        F=mixer.feature_dim,
        R=mixer.groups,
        D=head_dim,
        V=width,
        W=mixer.width,
        DEGREE=len(mixer.key_weight.coefficients),
        DECAYS=decays,
        PADDED=padding is not None,
        NO_KEYS=NO_KEYS,
        FORGOTTEN=FORGOTTEN,
        BLOCK_F=features,
        BLOCK_R=next_power_of_2(mixer.groups),
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_V=next_power_of_2(width),
        BLOCK_W=near,
        num_warps=min(32, max(4, largest // HELD)),
    )
    return out, new
