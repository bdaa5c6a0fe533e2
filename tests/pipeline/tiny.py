"""Tiny softmax teachers with random weights, and the text and tokenizer that they share."""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from distill.data import Corpus
from distill.folders import folder

END = "<|endoftext|>"
VOCABULARY = 300
CONTEXT = 32
#: Large weights, so that attention is far from uniform.
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}

#: A mixer as a configuration has it: the keys that all have, and a map.
PLAIN: Any = OmegaConf.to_container(OmegaConf.load(folder("conf") / "mixer/parts/default.yaml"))
MIXER = PLAIN | {"map": "exponential", "features": 4, "frequency_scale": 0.3}

CONFIGS = {
    # A joint projection, dropout that has to stay off, and a scaling that differs by layer.
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, scale_attn_by_inverse_layer_idx=True, **COMMON),
    # Grouped queries and rotary positions.
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **COMMON,
    ),
}


def model(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def save(folder: Path, config: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A directory that `teacher.path` takes."""
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(text: str, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END)


def prose(seed: int, lines: int) -> str:
    """Sentences that repeat themselves enough for a tokenizer to find words in them."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(60)]
    return "".join(" ".join(draw.choices(words, k=9)) + ".\n" for _ in range(lines))


def corpus(blocks: int) -> Corpus:
    """Random tokens; a batch of all `blocks` is the same at every step, but for the order in it."""
    ids = torch.randint(VOCABULARY, (blocks, CONTEXT), generator=torch.Generator().manual_seed(0))
    made = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    return Corpus({}, {"random": made}, {"random": made}, {"random": 1.0}, seed=0, workers=0)
