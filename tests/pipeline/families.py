"""Tiny random models of the families that people have, one for each way of building attention."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from distill.task import DECODER, TASKS, Task

VOCABULARY = 60
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
BODY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
GROUPED = BODY | {"num_key_value_heads": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0}

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": GROUPED,
    "llama, tied": GROUPED | {"tie_word_embeddings": True, "attention_bias": True},
    # Biases of the query, key and value alone.
    "qwen2": GROUPED,
    # Heads wider than the model's share of them, and norms of query and key.
    "qwen3": GROUPED | {"head_dim": 8},
    "mistral": GROUPED | {"sliding_window": None},
    # One joint projection, rotary positions in a part of each head, attention beside the feed-forward layer.
    "gpt_neox": BODY | {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    # Learned positions that count what is not padding.
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    },
    "gptj": GPT | {"rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "codegen": GPT | {"rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "phi": GROUPED,
    "phi3": GROUPED,
    "gemma": GROUPED | {"head_dim": 8},
    "olmo2": GROUPED,
    "granite": GROUPED | {"attention_multiplier": 0.3},
    "smollm3": GROUPED,
    "cohere": GROUPED,
    # A single key-value head.
    "gpt_bigcode": GPT | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # Windows as long as any text that is read.
    "starcoder2": GROUPED | NO_DROPOUT | {"sliding_window": 64, "embedding_dropout": 0.0},
    # Values narrower than queries and keys.
    "deepseek_v3": GROUPED
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
        "first_k_dense_replace": 2,
    },
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": BODY | STILL,
    "roberta": BODY | STILL,
    "xlm-roberta": BODY | STILL,
    "distilbert": {
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "electra": BODY | STILL | {"embedding_size": 16},
    "modernbert": BODY | {"local_attention": 64, "cls_token_id": 0, "sep_token_id": 0},
    "eurobert": GROUPED,
}
FAMILIES = DECODERS | ENCODERS

#: Models that cannot be swapped, and what is said of them.
REFUSED_DECODERS: dict[str, tuple[dict[str, Any], str]] = {
    "gpt_neo": (
        {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        "gpt_neo does not use transformers' attention interface",
    ),
    "bloom": (
        {"hidden_size": 16, "n_layer": 2, "n_head": 4},
        "bloom does not use transformers' attention interface",
    ),
    "falcon": (GROUPED, "falcon does not use transformers' attention interface"),
    "mpt": ({"d_model": 16, "n_heads": 4, "n_layers": 2}, "mpt does not use transformers' attention interface"),
    "gemma2": (GROUPED | {"head_dim": 8}, "gemma2 has soft-capped logits"),
    "mistral": (GROUPED | {"sliding_window": 4}, "mistral has sliding windows of 4 tokens"),
    "gemma3_text": (
        GROUPED | {"head_dim": 8, "sliding_window": 16},
        "gemma3_text has sliding windows of 16 tokens, beyond which linear attention would see more than it does; "
        "set data.context=16 or lower",
    ),
    # Windows that only its masks know of.
    "phimoe": (GROUPED | {"sliding_window": 4, "num_local_experts": 2}, "phimoe has sliding windows of 4 tokens"),
    "llama4_text": (GROUPED | {"attention_chunk_size": 4}, "llama4_text has sliding windows of 4 tokens"),
    "gpt_oss": (
        GROUPED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "gpt_oss has attention sinks",
    ),
    "stablelm": (GROUPED, "stablelm does not hand arguments on"),
}
REFUSED_ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "albert": (BODY | {"embedding_size": 16}, "albert runs one attention module more than once"),
    "deberta-v2": (BODY, "deberta-v2 does not use transformers' attention interface"),
    "modernbert": (
        BODY | {"cls_token_id": 0, "sep_token_id": 0, "local_attention": 16},
        "modernbert has sliding windows of",
    ),
}


def task_of(name: str) -> Task:
    return DECODER if name in DECODERS or name in REFUSED_DECODERS else TASKS["masked_lm"]


def configuration(name: str, options: dict[str, Any]) -> PretrainedConfig:
    return AutoConfig.for_model(name.partition(",")[0], **TOKENS | options)
