"""Texts that belong together, two by two: from a table's rows, or neighbours in plain text, to tokens."""

from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..config import Domain
from ..errors import UserError
from . import files, order, sources, tables
from .packing import identity
from .sources import Splits

IDS = {name: List(Value("int32")) for name in ("input_ids", "partner_ids")}
#: Part of the cache's key: raise it when the same rows have to give other tokens.
VERSION = 1


def load(domain: Domain) -> Splits:
    """Rows with the columns text and pair; without a `pair`, passages of plain text and the one after each.

    UserError as of `tables.load` and `sources.load`, and for texts that are too short to hold two passages.
    """
    if domain.pair:
        return tables.load(domain, {"text": "column", "pair": "pair"}, texts=("text", "pair"))
    if files.kind(Path(domain.path)) in (".csv", ".tsv"):
        raise UserError(
            f"{domain.path} is a table: set data.domains.NAME.pair to the column of what a text belongs with"
        )
    splits = (each if each is None else order.neighbours(each) for each in sources.load(domain, streaming=False))
    return Splits(*(each if each is None else _some(each, domain) for each in splits))


def _some(rows: Dataset, domain: Domain) -> Dataset:
    if not len(rows):
        raise UserError(
            f"{domain.path} has no text of two passages, which end with a sentence or at an empty line: set "
            "data.domains.NAME.pair to the column of what each text belongs with, or give longer texts"
        )
    return rows


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, context: int, domain: str) -> Dataset:
    """Rows as `load` gives them → `input_ids` and `partner_ids`, each at most `context` tokens with those that mark
    beginning and end."""
    how = [VERSION, identity(tokenizer), tokenizer.truncation_side, context]
    return tables.encoded(rows, _encoded, {"tokenizer": tokenizer, "context": context}, IDS, how, domain)


def _encoded(batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, context: int) -> dict[str, list[Any]]:
    how: dict[str, Any] = {"truncation": True, "max_length": context, "verbose": False}
    return {name: tokenizer(batch[key], **how)["input_ids"] for name, key in zip(IDS, ("text", "pair"), strict=True)}
