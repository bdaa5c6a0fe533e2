"""The student as transformers sees it: the teacher's own architecture with mixers in place of softmax."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .build import build_mixer
from .cache import CACHE, FlexformerCache
from .configuration import FlexformerConfig
from .exact import exact_attention, is_causal
from .feature_map import HeadShape
from .inputs import check_inputs
from .token_mixer import TokenMixer

#: The name under which base models find the swapped attention.
ATTENTION = "flexformer"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    flexformer_cache: FlexformerCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: q (B, H, N, D), k and v (B, K, N, D) → (B, N, H, D).

    The registry that holds this function is global while mixers are not: it answers with the mixer of the module
    that calls, so that several students live in one process.
    """
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            raise ValueError("a flexformer takes a 2-D padding mask (batch, tokens), no other")
        attention_mask = attention_mask[:, -key.shape[2] :]
        if attention_mask.shape != (len(key), key.shape[2]):
            raise ValueError(
                f"a padding mask of {tuple(attention_mask.shape)} is none of {len(key)} texts of {key.shape[2]} tokens"
            )
    scaling = own_scaling(module, query.shape[-1]) if scaling is None else scaling
    if not hasattr(module, "mixer"):
        out = exact_attention(query, key, value, scaling, attention_mask, is_causal(module))
        return out.transpose(1, 2).contiguous(), None
    # Known by what it has: where the files of several students are loaded, its class is not of this file's siblings.
    layer: Any = getattr(key, "flexformer_layer", None)
    if layer is None and flexformer_cache is not None:
        # DeepSeek makes the keys of what the cache hands it.
        layer = flexformer_cache.memories[module.layer_idx]
    remembered = None if layer is None else layer.memory
    out, memory = module.mixer(query, key, value, scaling, attention_mask, remembered)
    if layer is not None:
        layer.memory = memory
    return out.transpose(1, 2).contiguous(), None


def own_scaling(module: Any, head_dim: int) -> float:
    """What softmax's logits are multiplied with where an attention does not say: some releases leave it to GPT-2's."""
    scaling = head_dim**-0.5 if getattr(module, "scale_attn_weights", True) else 1.0
    return scaling / (module.layer_idx + 1) if getattr(module, "scale_attn_by_inverse_layer_idx", False) else scaling


def padding_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface. Without one of its own, an attention would never be told of the padding.

    A mask that hides nothing is none: without one, layers kept exact take the fast path.
    """
    if attention_mask is None or torch.compiler.is_compiling():
        return attention_mask
    return None if bool((attention_mask != 0).all()) else attention_mask


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, padding_mask)


class Flexformer(PreTrainedModel):
    """A language model whose attention layers are linear, all but those that `config.exact_layers` names.

    auto: transformers' class of the base model.
    """

    config_class = FlexformerConfig
    base_model_prefix = "lm"
    supports_gradient_checkpointing = True
    auto: Any

    def __init__(self, config: FlexformerConfig):
        super().__init__(config)
        # In the precision that this model is made in, not in the one that the teacher was stored in.
        wanted = {"attn_implementation": ATTENTION, "dtype": torch.get_default_dtype()}
        self.lm = self.auto.from_config(config.base_config(), **wanted)
        self.build_mixers()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers'; ValueError where the checkpoint lacks a weight, which would be left as memory is found."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, told = loaded
        if missing := sorted(told["missing_keys"]):
            raise ValueError(
                f"{args[0] if args else 'the checkpoint'} has no {missing[0]}: it was made by other files than these; "
                "load it with trust_remote_code=True, or distil it again"
            )
        return (model, told) if output_loading_info else model

    def build_mixers(self) -> None:
        """A mixer as drawn for every swapped layer, with as many features as `config.layers` says where it says so."""
        for layer in self.swapped.values():
            shape = HeadShape(layer["heads"], layer["kv_heads"], layer["head_dim"])
            own = {"features": layer["features"]} if "features" in layer else {}
            mixer = build_mixer(shape, self.config.mixer | own, self.config.causal)
            self.lm.get_submodule(layer["module"]).mixer = mixer

    @property
    def swapped(self) -> dict[int, dict[str, Any]]:
        """The entries of `config.layers` whose attention is linear, by their index."""
        return {i: layer for i, layer in enumerate(self.config.layers) if i not in self.config.exact_layers}

    @property
    def mixers(self) -> dict[int, TokenMixer]:
        """The mixers by the index of their layer."""
        return {i: self.lm.get_submodule(layer["module"]).mixer for i, layer in self.swapped.items()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Mixers draw their own parameters when built, and everything else is the teacher's."""

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm.set_output_embeddings(new_embeddings)


class FlexformerForCausalLM(Flexformer, GenerationMixin):
    """A causal language model: every token sees those before it, through a state of fixed size."""

    auto = AutoModelForCausalLM
    # What went into a state cannot be taken out again: assisted decoding, which rolls back, is refused.
    _is_stateful = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FlexformerCache | None = None,
        use_cache: bool | None = None,
        cache: FlexformerCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the base model's own; `cache`, which transformers called `past_key_values` before 5.24 and which may still
        be called so, is a FlexformerCache.

        position_ids is named because `generate` gives a padded batch its positions only where it finds the name.
        """
        cache = past_key_values if cache is None else cache
        asked_for = use_cache or cache is not None
        use_cache = not self.training if use_cache is None else use_cache
        if cache is None and use_cache:
            cache = self.new_cache()
        if cache is not None and not hasattr(cache, "memories"):
            raise ValueError(f"a flexformer keeps states, and cannot use a {type(cache).__name__}")
        check_inputs(attention_mask, position_ids, kwargs)
        out = self.lm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            flexformer_cache=cache,
            **{CACHE: cache},
            **kwargs,
        )
        if cache is not None and not cache.reached:
            # The next token would be read as if it were the first.
            if asked_for:
                raise ValueError(
                    f"this release of transformers does not hand {self.lm.config.model_type}'s attention its state: "
                    "set use_cache=False, or take another release"
                )
            out[CACHE] = None
        return out

    def new_cache(self) -> FlexformerCache:
        return FlexformerCache([i not in self.swapped for i in range(len(self.config.layers))])

    def _prepare_cache_for_generation(  # type: ignore[override]  # its arguments change between versions
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            kind = generation_config.cache_implementation
            raise ValueError(f"cache_implementation={kind}: a flexformer has one fixed-size state; leave it out")
        if generation_config.use_cache and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = self.new_cache()
