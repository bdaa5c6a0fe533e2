"""Texts → blocks of tokens, as GPT-2 was trained: documents joined by the end-of-text token, cut without padding."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..errors import UserError

#: Documents joined before they are cut: each such batch drops its last, incomplete block. A thousand documents
#: make that loss negligible, and are still few enough to be held in memory; a local text file is one document.
BATCH = 1000
#: Characters tokenised as one string, cut at a line break, and strings per call: the tokenizer works on the strings
#: of one call in parallel, but on each alone, and needs some hundred bytes per token until the call is over.
PIECE = 100_000
PIECES = 128
#: Part of the cache's key: raise it when the same text has to give other blocks.
VERSION = 1


def pack(texts: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, context: int, domain: str) -> Any:
    """Column `text` → column `input_ids` of exactly `context` tokens, in the order of the text.

    A Dataset's blocks are cached on disk by text, tokenizer and context; an IterableDataset's are made on the fly.
    domain: what the text is called in messages. UserError if the tokenizer has no end-of-text token, or if the
    text does not fill one block.
    """
    if _end(tokenizer) is None:
        raise UserError("teacher.path: the tokenizer has no end-of-text token to join documents by; set its eos_token")
    options = {
        "batched": True,
        "batch_size": BATCH,
        "remove_columns": ["text"],
        "fn_kwargs": {"tokenizer": tokenizer, "context": context},
        "features": Features({"input_ids": List(Value("int32"), length=context)}),
    }
    if isinstance(texts, IterableDataset):
        blocks = texts.map(_blocks, **options)
        enough = next(iter(blocks), None) is not None
    else:
        key = Hasher.hash([VERSION, texts._fingerprint, identity(tokenizer), context])
        blocks = texts.map(_blocks, **options, new_fingerprint=key, desc=f"packing {domain}")
        enough = len(blocks) > 0
    if not enough:
        raise UserError(_too_little(texts, tokenizer, context, domain))
    return blocks.with_format("torch")


def _blocks(batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, context: int) -> dict[str, numpy.ndarray]:
    ids = _joined(batch["text"], tokenizer)
    whole = len(ids) // context
    return {"input_ids": ids[: whole * context].reshape(whole, context)}


def _joined(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> numpy.ndarray:
    """The ids (N,) of all documents, int32, each followed by the end-of-text token; an empty text is none."""
    documents = [list(_pieces(text)) for text in texts if text]
    ids = _tokenized([piece for pieces in documents for piece in pieces], tokenizer)
    end = numpy.array([_end(tokenizer)], dtype=numpy.int32)
    return numpy.concatenate([end[:0], *(part for pieces in documents for part in (*islice(ids, len(pieces)), end))])


def _end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text, as encoders have it one that separates two."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def _tokenized(pieces: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[numpy.ndarray]:
    for first in range(0, len(pieces), PIECES):
        # verbose=False: that a document is longer than the teacher's context is no news here.
        encoded = tokenizer(
            pieces[first : first + PIECES], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        yield from (numpy.array(ids, dtype=numpy.int32) for ids in encoded["input_ids"])


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        # The last line break within reach, or a plain cut where there is none.
        end = start + PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What decides over ids. Not the object, whose hash changes with its first call and with its folder."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, _end(tokenizer), sorted(tokenizer.get_vocab().items())]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by earlier calls, and not used here.
    del state["truncation"], state["padding"]
    return [_end(tokenizer), json.dumps(state)]


def _too_little(texts: Any, tokenizer: PreTrainedTokenizerBase, context: int, domain: str) -> str:
    tokens = len(_joined([row["text"] for row in texts], tokenizer))
    return (
        f"domain {domain} has {tokens} tokens, too few for one block of data.context={context}: "
        "give more text or a smaller context"
    )
