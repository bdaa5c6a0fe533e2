"""The mixer of feature maps: kernels of query and key in softmax's place."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .attempt import KERNELS, LINEAR, PYTORCH, noted
from .bidirectional import everywhere
from .decay import FORGOTTEN, build_decay
from .delta import DELTA, Reading
from .engine import NO_KEYS, SUMS, Features, State, Way
from .feature_map import HeadShape
from .key_weight import KeyWeight
from .linear import has_kernels, through_kernels
from .memory import Memory
from .normaliser import build_normaliser
from .options import check_options
from .precision import at_least_float32, scaled
from .step import WHAT as ONE
from .step import has_kernel, one_step
from .token_mixer import TokenMixer
from .weights import Whole, log_weights, weights
from .window import Window

#: What a token's weight can come from.
PARTS = ("linear", "window")


class Mixer(TokenMixer):
    """o_i = N(Σ_{j ≤ i} L_ij e^{w(k_j)} φ_q(q_i)·φ_k(k_j) [v_j, 1]), and exact softmax inside the window.

    Four parts that combine freely: the feature map φ, the decay L, the normaliser N, and the window; options says
    which, see `options.check_options`. Of an encoder, which is not causal, the sum is over all j, without decay and
    without a window.
    """

    def __init__(self, shape: HeadShape, options: Mapping[str, Any], causal: bool = True):
        build, arguments = check_options(options, causal)
        made = build(shape, **arguments)
        super().__init__(shape, made.feature_dim)
        self.map, self.causal = made, causal
        self.key_weight = KeyWeight(shape, options["key_weight"])
        atoms = self.feature_dim // self.map.per_atom
        self.decay = build_decay(shape, options["decay"], options["decay_groups"], atoms)
        self.groups = options["decay_groups"]
        self.ways = DELTA if self.decay.erases else SUMS
        self.reading = Reading(shape, options["window"]) if self.decay.erases else None
        self.normaliser = build_normaliser(shape, options["normaliser"], self.map.epsilon)
        self.width = options["window"]
        self.window = Window(shape, self.width) if self.width else None
        #: The parts that take part; a control takes one away and looks what is left.
        self.parts = set(PARTS)
        if options["frozen"]:
            if not self.map.frequencies:
                raise ValueError(f"mixer.frozen=true: mixer={options['map']} learns no frequencies; leave it out")
            self.map.freeze()

    @property
    def comparable(self) -> bool:
        """Weights are above 0 and sum to one: KL(softmax‖student) is defined."""
        return bool(self.map.positive and self.averages)

    @property
    def averages(self) -> bool:
        return bool(self.normaliser.averages and not self.decay.erases)

    @property
    def centroids(self) -> int:
        return self.map.centroids

    def place(self, centroids: Tensor) -> None:
        self.map.place(centroids)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        padding: Tensor | None = None,
        memory: Memory | None = None,
        path: Way | None = None,
    ) -> tuple[Tensor, Memory]:
        """q (B, H, N, D), k and v (B, K, N, D) → o (B, H, N, D) in the dtype of `value`, and what to remember.

        `scaling` is softmax's, `padding` (B, N) is 0 at padding, `memory` what a call before this one returned.
        """
        if memory is not None and not self.causal:
            raise ValueError("an encoder sees both directions: it reads a text whole, and has no memory to go on from")
        if memory is not None and len(memory.seen) != len(query):
            raise ValueError(
                f"a state of {len(memory.seen)} texts cannot be gone on from with {len(query)}: "
                "repeat or select its rows first"
            )
        one = memory is not None and query.shape[2] == 1
        if path is None:
            done = None
            if memory is not None and one and has_kernel(self, query, value):
                done = one_step(self, query, key, value, scaling, padding, memory)
            elif not one and has_kernels(self, query, value, memory):
                done = through_kernels(self, query, key, value, scaling, padding, memory)
            noted(ONE if one else LINEAR, PYTORCH if done is None else KERNELS)
            if done is not None:
                return done
            path = (self.ways.recurrent if one else self.ways.chunked) if self.causal else everywhere
        with torch.autocast(query.device.type, enabled=False):
            length = query.shape[2]
            memory = memory or self.no_memory(key, value)
            keys, values = _join(memory.keys, key), _join(memory.values, value)
            new = _real(key, padding)
            present = torch.cat([memory.present, new], 1)
            position = (memory.seen - memory.present.sum(1))[:, None] + present.cumsum(1) - 1
            query, wide_keys, wide_values = scaled(query, scaling), scaled(keys, scaling), at_least_float32(values)

            # What leaves the window when query i comes is key i − w: the linear part runs that far behind.
            far = slice(0, length)
            features = self.features(
                query, position[:, self.width :], wide_keys[:, :, far], position[:, far], present[:, far]
            )
            state = State(memory.sums, memory.maximum)
            weighted, state = path(features, wide_values[:, :, far], state)
            if self.reading is not None:
                weighted = self.reading(query, weighted)
            if self.window is not None:
                near = self.window.near(query, wide_keys, wide_values, present & ("window" in self.parts))
                weighted = self.window.join(self.gate(query), near, weighted)
            out = self.normaliser(weighted.sums).to(value.dtype)
            recent = slice(keys.shape[2] - self.width, None)
            seen = memory.seen + new.sum(1)
            window = (keys[:, :, recent], values[:, :, recent], present[:, recent])
            return out, Memory(*state, seen, *map(_alone, window))

    def features(
        self, query: Tensor, query_position: Tensor, key: Tensor, key_position: Tensor, present: Tensor
    ) -> Features:
        """Features of scaled q (B, H, N, D) and k (B, K, N, D), both at least float32; present (B, N)."""
        key_features, log_scale = self.map.key_features(key, key_position)
        query_features = self.map.query_features(query, query_position)
        if self.decay.erases and not self.map.unit:
            # Of length 1, so that a key erases no more than there is; whatever factor a map leaves out is gone, too.
            query_features, key_features = normalize(query_features, dim=-1), normalize(key_features, dim=-1)
            log_scale = None
        log_decay, decay_weight = self.decay(key)
        log_weight = self.key_weight(key)
        for term in (log_scale, decay_weight):
            if term is not None:
                log_weight = log_weight + term
        absent = ~(present & ("linear" in self.parts))[:, None]
        return Features(
            query_features,
            key_features,
            log_weight.masked_fill(absent, -torch.inf),
            log_decay.clamp(min=FORGOTTEN).masked_fill(absent[..., None], 0.0),
        )

    def log_weights(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        queries: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """log A (B, K, G, Q, N), see `weights.log_weights`. `padding` (B, N) is 0 at padding, whose weight is −∞."""
        return log_weights(self.whole(query, key, scaling, padding), queries)

    def scores(self, query: Tensor, key: Tensor, scaling: float, padding: Tensor | None = None) -> Tensor:
        """S (B, K, G, N, N) up to a factor above 0 in each row, also where it is negative."""
        return weights(self.whole(query, key, scaling, padding))

    def whole(self, query: Tensor, key: Tensor, scaling: float, padding: Tensor | None = None) -> Whole:
        """What the weights of whole texts are made of, without memory: the linear part's keys `width` tokens late."""
        query, key, real = scaled(query, scaling), scaled(key, scaling), _real(key, padding)
        position, length = real.cumsum(1) - 1, key.shape[2]
        delayed, late, there = (
            torch.nn.functional.pad(each, (*unmoved, self.width, 0)).narrow(axis, 0, length)
            for each, unmoved, axis in ((key, (0, 0), 2), (position, (), 1), (real, (), 1))
        )
        features = self.features(query, position, delayed, late, there)
        gate = None if self.window is None else self.gate(query)
        seen = real & ("window" in self.parts)
        return Whole(features, query, key, seen, gate, self.width, self.map.minimum(), self.causal)

    def gate(self, query: Tensor) -> Tensor:
        """What the logarithm of the linear part's weights is raised by beside a window: (B, H, N)."""
        assert self.window is not None
        gate, dropped = self.window.gate(query), self.map.dropped(query)
        return gate if dropped is None or self.decay.erases else gate + dropped

    def no_memory(self, key: Tensor, value: Tensor) -> Memory:
        """What there is to remember before the first token, for texts like k and v."""
        batch, heads, _, head_dim = key.shape
        wide = at_least_float32(value[:0]).dtype
        return Memory(
            key.new_zeros(batch, heads, self.map.feature_dim, value.shape[-1] + 1, dtype=wide),
            key.new_full((batch, heads, self.groups), NO_KEYS, dtype=wide),
            torch.zeros(batch, dtype=torch.long, device=key.device),
            key.new_zeros(batch, heads, self.width, head_dim),
            value.new_zeros(batch, heads, self.width, value.shape[-1]),
            torch.zeros(batch, self.width, dtype=torch.bool, device=key.device),
        )


def _real(key: Tensor, padding: Tensor | None) -> Tensor:
    """Which tokens are no padding: (B, N)."""
    return key.new_ones(len(key), key.shape[2], dtype=torch.bool) if padding is None else padding != 0


def _alone(part: Tensor) -> Tensor:
    """Cloned, or a window of no tokens would keep all of them in memory; with the strides that it has ever after, which
    a compiled step looks at."""
    return part.clone(memory_format=torch.contiguous_format)


def _join(remembered: Tensor, new: Tensor) -> Tensor:
    """Along the tokens; without a window nothing is copied."""
    return torch.cat([remembered, new], 2) if remembered.shape[2] else new
