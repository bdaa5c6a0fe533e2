"""A step of decoding in one layer: softmax over all keys so far, and linear attention's state, in each way there is."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..capture import Heads
from ..flexformer.memory import Memory
from ..flexformer.mixer import Mixer
from ..flexformer.step import has_kernel, launched
from ..measure.steps import READ, Step
from .attention import SOFTMAX
from .layer import Layer, error

#: Texts that are written at a time.
BATCH = 8
#: Outputs of one token (B, H, 1, D) that comes after what a memory is of.
Decode = Callable[[Mixer, Heads, Memory], Tensor]


def floor(layer: Layer, length: int, multiplied: float, copied: float) -> float:
    """Seconds that it takes to read all that linear attention keeps, and to write it."""
    mixer, (_, heads) = layer.mixer(), kept_and_new(layer, 1)
    memory = mixer.no_memory(heads.key, heads.value)
    return 2 * sum(part.nbytes for part in memory) / copied


def softmax(kept: Heads, heads: Heads) -> Tensor:
    grouped = kept.key.shape[1] < heads.query.shape[1]
    return scaled_dot_product_attention(heads.query, kept.key, kept.value, enable_gqa=grouped)


def plain(mixer: Mixer, heads: Heads, memory: Memory) -> Tensor:
    out: Tensor = mixer(heads.query, heads.key, heads.value, heads.scaling, None, memory, mixer.ways.recurrent)[0]
    return out


def kernel(mixer: Mixer, heads: Heads, memory: Memory) -> Tensor:
    return launched(mixer, heads.query, heads.key, heads.value, heads.scaling, None, memory)[0]


@torch.no_grad()
def linear(layer: Layer) -> dict[str, Decode]:
    """Those that there are on this machine."""
    heads = layer.heads(1)
    found: dict[str, Decode] = {"linear, plain": plain}
    return found | ({"linear, kernel": kernel} if has_kernel(layer.mixer(), heads.query, heads.value) else {})


def ways(layer: Layer) -> dict[str, Callable[[int], Step]]:
    mixer = layer.mixer()

    @torch.no_grad()
    def exact(length: int) -> Step:
        kept, new = kept_and_new(layer, length)
        return no_gradients(partial(softmax, kept, new))

    @torch.no_grad()
    def state(decode: Decode, length: int) -> Step:
        kept, new = kept_and_new(layer, min(length, READ))
        return no_gradients(partial(decode, mixer, new, read(mixer, kept)))

    found: dict[str, Callable[[int], Step]] = {SOFTMAX: exact}
    return found | {name: partial(state, decode) for name, decode in linear(layer).items()}


def no_gradients(step: Step) -> Step:
    return torch.no_grad()(step)


def read(mixer: Mixer, kept: Heads) -> Memory:
    """What is remembered of these tokens."""
    memory: Memory = mixer(kept.query, kept.key, kept.value, kept.scaling)[1]
    return memory


def kept_and_new(layer: Layer, length: int) -> tuple[Heads, Heads]:
    """`length` tokens, and the one after them."""
    heads = layer.heads(length + 1, BATCH)

    def part(where: slice) -> Heads:
        query, key, value = (each[:, :, where] for each in heads[1:4])
        return heads._replace(query=query, key=key, value=value)

    return part(slice(0, length)), part(slice(length, None))


@torch.no_grad()
def errors(layer: Layer) -> dict[str, float]:
    """By way, of the outputs after READ tokens beyond the window, against float64."""
    mixer, (kept, new) = layer.mixer(), kept_and_new(layer, layer.options["window"] + READ)
    exact = deepcopy(mixer).double()
    wide = [
        each._replace(query=each.query.double(), key=each.key.double(), value=each.value.double())
        for each in (kept, new)
    ]
    right = plain(exact, wide[1], read(exact, wide[0]))
    return {name: error(decode(mixer, new, read(mixer, kept)), right) for name, decode in linear(layer).items()}
