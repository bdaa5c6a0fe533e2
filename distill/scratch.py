"""What a teacher is made of where nothing is there yet: a tokenizer and an untrained model."""

from collections.abc import Iterable
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .config import Teacher as Wanted
from .errors import UserError
from .loading import check_context
from .swappable import check_direction, check_family
from .task import Task

END_OF_TEXT = "<|endoftext|>"
#: What an encoder's text begins with, for its head to look at.
BEGINNING = "[CLS]"


def train_tokenizer(texts: Iterable[str], vocabulary: int, task: Task) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's kind) of `vocabulary` entries; entry 0 ends a text, special ones follow.

    An encoder's begins a text with [CLS], and ends each text of a pair.
    """
    special = task.special_tokens | ({} if task.causal else {"cls_token": BEGINNING})
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END_OF_TEXT, *special.values()])
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    if not task.causal:
        end["sep_token"] = END_OF_TEXT
        around = [(name, bpe.token_to_id(name)) for name in (BEGINNING, END_OF_TEXT)]
        one = f"{BEGINNING} $A {END_OF_TEXT}"
        bpe._tokenizer.post_processor = TemplateProcessing(
            single=one, pair=f"{one} $B {END_OF_TEXT}", special_tokens=around
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **end, **special)


def check_architecture(architecture: dict[str, Any]) -> None:
    """UserError for an unknown family, and for a key that is almost one of its keys: transformers takes any."""
    model_type = str(architecture.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"teacher.architecture.model_type={model_type} is unknown to transformers; try llama or bert")
    made = CONFIG_MAPPING[model_type]
    known = {*signature(made).parameters, *made.attribute_map}
    for key in architecture:
        near = get_close_matches(key, known, n=1, cutoff=0.8)
        # Some are of what a class alone has, some of what comes of one.
        if near and key not in known and not hasattr(made, key) and not hasattr(made(), key):
            raise UserError(f"teacher.architecture.{key} is unknown to {model_type}; did you mean {near[0]}?")


def build_model(
    wanted: Wanted, tokenizer: PreTrainedTokenizerBase, context: int, task: Task, named: dict[str, Any]
) -> Any:
    """The untrained model of teacher.architecture; UserError where transformers refuses it.

    named: what its configuration says of the labels.
    """
    architecture = dict(wanted.architecture or {})
    model_type, end = architecture.pop("model_type", None), tokenizer.eos_token_id
    check_family("teacher.architecture", model_type, task)
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    try:
        model_config = AutoConfig.for_model(
            model_type,
            **{"vocab_size": len(tokenizer), **tokens, **named, **architecture},
        )
        check_context(model_config, context)
        model = task.auto.from_config(model_config, dtype=torch.float32)
        task.complete(model, None)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"teacher.architecture: {str(error).splitlines()[0]}") from error
    attentions = [module for module in model.modules() if hasattr(module, "is_causal")]
    check_direction("teacher.architecture", model_type, attentions, task)
    return model
