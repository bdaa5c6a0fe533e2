"""An attention layer from q, k and v to its outputs and back: softmax, and linear attention in each way there is."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..capture import Heads
from ..flexformer.linear import has_kernels, launched
from ..flexformer.mixer import Mixer
from ..measure.steps import Step
from . import public
from .layer import Layer, error

#: Tokens in all, of as many texts as there is room for; fewer where nobody wants to wait for so many.
TOKENS = {"cuda": 65536, "cpu": 2048}
#: Tokens of the text on which every way is held against the formula in float64.
CHECKED = 512
#: The longest text that a way is timed with, tokens: the compiler takes minutes over the scan of a longer one.
LONGEST = {"linear, compiled": 1024}
#: The way that all others stand beside, and the one that has kernels.
SOFTMAX, KERNELS = "softmax (SDPA)", "linear, kernels"
#: Outputs (B, H, N, D).
Attention = Callable[[Mixer, Heads], Tensor]


def batch(layer: Layer, length: int) -> int:
    return max(1, TOKENS[layer.device.type] // length)


def floor(layer: Layer, length: int, multiplied: float, copied: float) -> float:
    """Seconds that linear attention takes at least: what its products take, of chunks of no tokens at all, or what it
    takes to read what comes in, q, k and v twice, and to write what goes out."""
    numbers = batch(layer, length) * length * layer.shape.head_dim
    # Forwards the features of q and k, the state and what is read of it, and backwards twice that.
    operations = 3 * (4 * 2 * layer.feature_dim) * numbers * layer.shape.heads
    # q twice, its gradient, the output and its own; and k and v twice, and theirs.
    heads = 5 * layer.shape.heads + 6 * layer.shape.kv_heads
    return max(operations / multiplied, numbers * heads * torch.finfo(layer.dtype).bits / 8 / copied)


def softmax(mixer: Mixer, heads: Heads) -> Tensor:
    grouped = heads.key.shape[1] < heads.query.shape[1]
    return scaled_dot_product_attention(heads.query, heads.key, heads.value, is_causal=True, enable_gqa=grouped)


def plain(mixer: Mixer, heads: Heads) -> Tensor:
    out: Tensor = mixer(heads.query, heads.key, heads.value, heads.scaling, path=mixer.ways.chunked)[0]
    return out


def kernels(mixer: Mixer, heads: Heads) -> Tensor:
    return launched(mixer, heads.query, heads.key, heads.value, heads.scaling, None, None)[0]


def attentions(layer: Layer) -> dict[str, Attention]:
    """Those that there are on this machine."""
    found: dict[str, Attention] = {SOFTMAX: softmax, "linear, plain": plain}
    if layer.device.type == "cuda":
        found["linear, compiled"] = torch.compile(plain, dynamic=False)
    mixer, heads = layer.mixer(), layer.heads(1)
    if has_kernels(mixer, heads.query, heads.value):
        found[KERNELS] = kernels
    if public.takes(mixer, heads):
        found["linear, flash-linear-attention"] = public.attention
    return found


def ways(layer: Layer) -> dict[str, Callable[[int], Step | None]]:
    mixer = layer.mixer()

    def make(name: str, attention: Attention, length: int) -> Step | None:
        if length > LONGEST.get(name, length):
            return None
        heads = tracked(layer.heads(length, batch(layer, length)))
        given = torch.randn_like(heads.query)

        def step() -> None:
            for each in (*heads[1:4], *mixer.parameters()):
                each.grad = None
            attention(mixer, heads).backward(given)  # type: ignore[no-untyped-call]

        return step

    return {name: partial(make, name, attention) for name, attention in attentions(layer).items()}


def errors(layer: Layer) -> dict[str, float]:
    """By way, of the gradients for q, k and v, the largest, against float64."""
    mixer, heads = layer.mixer(), tracked(layer.heads(CHECKED))
    exact, wide = deepcopy(mixer).double(), [each.detach().double().requires_grad_() for each in heads[1:4]]
    given = torch.randn_like(heads.query)
    found = {}
    for name, attention in attentions(layer).items():
        if name in LONGEST:
            # What the compiler fuses is the plain way, and takes it another minute.
            continue
        right = softmax if attention is softmax else plain
        out = right(exact, heads._replace(query=wide[0], key=wide[1], value=wide[2]))
        # Of a control that does not look at queries there is none.
        expected = torch.autograd.grad(out, wide, given.double(), allow_unused=True)
        got = torch.autograd.grad(attention(mixer, heads), heads[1:4], given, allow_unused=True)
        found[name] = max(error(*pair) for pair in zip(got, expected, strict=True) if pair[1] is not None)
    return found


def tracked(heads: Heads) -> Heads:
    query, key, value = (each.requires_grad_() for each in heads[1:4])
    return heads._replace(query=query, key=key, value=value)
