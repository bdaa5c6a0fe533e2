"""A cache of each test's own, a small tokenizer, and a text whose place in a block can be read off."""

from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distill.config import Data, Domain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def byte_level(text: str, end: str | None = "<end>") -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 300 tokens that begins every text with a token of its own, unless told not to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, model_max_length=16)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(counting(0, 200))


def counting(first: int, last: int) -> str:
    return "".join(f"line {i} of the text\n" for i in range(first, last))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def data(domains: dict[str, Domain] | None = None, **changes) -> Data:
    """A configuration for small texts: blocks of 8 tokens, at most 4 for validation."""
    standard = {"path": None, "name": None, "validation": None, "domains": domains or {}, "context": 8}
    return Data(**{**standard, "validation_blocks": 4, "streaming": False, "workers": 0, **changes})
