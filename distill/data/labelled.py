"""Texts with a label each: from a file's rows or the hub to tokens, one text or pair of texts a row."""

from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..config import Domain
from ..errors import UserError
from . import order, sources, tables
from .packing import identity
from .sources import Splits

#: Part of the cache's key: raise it when the same rows have to give other tokens.
VERSION = 1


def load(domain: Domain) -> Splits:
    """Rows with the columns text, pair (where the domain has one) and label; UserError as of `tables.load`."""
    if domain.order:
        texts = sources.load(domain, streaming=False)
        return Splits(*(None if each is None else order.pairs(each) for each in texts))
    return tables.load(domain, {"text": "column", "label": "label"} | ({"pair": "pair"} if domain.pair else {}))


def classes(rows: Dataset) -> list[str]:
    """What labels are called, in the order of their numbers."""
    feature = rows.features["label"]
    return list(feature.names) if isinstance(feature, ClassLabel) else [str(each) for each in sorted(_known(rows))]


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, context: int, names: list[str], domain: str) -> Dataset:
    """Rows as `load` gives them → columns `input_ids`, at most `context` tokens with those that mark beginning and end,
    `token_type_ids` where the tokenizer makes them, and `labels`, numbers of `names`.

    Of a pair, the longer text is cut first. UserError for a label that is none of the names.
    """
    numbers = _numbers(rows, names, domain)
    kept = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    features = {name: List(Value("int32")) for name in kept} | {"labels": Value("int64")}
    encoded = rows.map(
        _encoded,
        batched=True,
        remove_columns=rows.column_names,
        fn_kwargs={"tokenizer": tokenizer, "context": context, "numbers": numbers, "kept": kept},
        features=Features(features),
        new_fingerprint=Hasher.hash([VERSION, rows._fingerprint, identity(tokenizer), kept, context, names]),
        desc=f"encoding {domain}",
    )
    return encoded.with_format("torch")


def _encoded(
    batch: dict[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    numbers: dict[Any, int],
    kept: list[str],
) -> dict[str, list[Any]]:
    texts = [batch[name] for name in ("text", "pair") if name in batch]
    made = tokenizer(*texts, truncation=True, max_length=context, verbose=False)
    return {name: made[name] for name in kept} | {"labels": [numbers[label] for label in batch["label"]]}


def _numbers(rows: Dataset, names: list[str], domain: str) -> dict[Any, int]:
    """The number of each label: by name where all have the names given, whatever their order there; else as it is."""
    feature, found = rows.features["label"], _known(rows)
    called = {each: feature.int2str(each) if isinstance(feature, ClassLabel) and each >= 0 else each for each in found}
    known = {name.casefold(): number for number, name in enumerate(names)}
    if all(str(name).casefold() in known for name in called.values()):
        return {each: known[str(name).casefold()] for each, name in called.items()}
    for each in found:
        if not isinstance(each, int) or not 0 <= each < len(names):
            raise UserError(
                f"domain {domain}: label {each} is none of {', '.join(names)} (0 to {len(names) - 1}); "
                "give rows that are labelled so, or set `label` to the column that is"
            )
    return {each: each for each in found}


def _known(rows: Dataset) -> list[Any]:
    return [each.item() if hasattr(each, "item") else each for each in rows.unique("label")]
