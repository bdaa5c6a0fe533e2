"""The configuration of a student: its teacher's own, which attention layers are swapped, and for what mixer."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

#: Read by generation, pipelines and serving tools off the top level; the student shares them with its base.
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
)

#: The same of its heads, by what a layer calls them.
HEADS = {"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim"}


class FlexformerConfig(PretrainedConfig):
    """base: the teacher's configuration as a dictionary.
    mixer: {"map": …, "key_weight": …, "decay": …, …}, see options.check_options.
    layers: one {"module", "heads", "kv_heads", "head_dim"} per attention module, in the order of the model; "features"
    besides where a layer has a number of its own.
    exact_layers: indices of those that stay softmax; all others are swapped.
    causal: a token sees those before it; False for an encoder, where each sees all.
    """

    model_type = "flexformer"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        mixer: dict[str, Any] | None = None,
        layers: list[dict[str, Any]] | None = None,
        exact_layers: list[int] | None = None,
        causal: bool = True,
        **kwargs: Any,
    ):
        self.base, self.mixer = base or {}, mixer or {}
        self.layers, self.exact_layers = layers or [], exact_layers or []
        self.causal = causal
        # Off the configuration object and not the dictionary: GPT-2 calls its hidden_size n_embd.
        base_config = self.base_config() if self.base else None
        shared = {name: getattr(base_config, name) for name in SHARED if hasattr(base_config, name)}
        # Of the first layer, whatever the base calls them.
        for layer in self.layers[:1]:
            shared |= {to: layer[own] for to, own in HEADS.items()}
        # Tied by the base model itself; the wrapper owns no embedding.
        super().__init__(**{"tie_word_embeddings": False, **shared, **kwargs})

    @property
    def window(self) -> int:
        """How many tokens a mixer sees exactly, the state beginning behind them."""
        return self.mixer.get("window") or 0

    def base_config(self) -> PretrainedConfig:
        """A fresh configuration object of the base model."""
        options = dict(self.base)
        return AutoConfig.for_model(options.pop("model_type"), **options)
