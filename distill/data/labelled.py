"""Texts with a label each: from a file's rows or the hub to tokens, one text or pair of texts a row."""

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..config import Domain
from ..errors import UserError
from . import files, hub
from .packing import identity
from .sources import Splits, is_local

#: How datasets reads a table, by the extension of its file.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
#: Rows have no order that means anything, and those held out are taken from the end.
SHUFFLED = 0
#: Part of the cache's key: raise it when the same rows have to give other tokens.
VERSION = 1


def load(domain: Domain) -> Splits:
    """Rows with the columns text, pair (where the domain has one) and label, in an order of their own.

    UserError for what is no table or cannot be reached, and for columns that are missing.
    """
    if domain.path == "python":
        raise UserError("data.path=python has no labels: give a .jsonl, .csv or .parquet file, or a hub data set")
    if is_local(domain.path):
        train, validation = _table("data.path", domain.path), None
    else:
        train, validation = hub.table(domain, domain.split), None
        if domain.validation is None and hub.has_split(domain, "validation", streaming=False):
            validation = hub.table(domain, "validation")
    if domain.validation is not None:
        local = is_local(domain.validation)
        validation = _table("data.validation", domain.validation) if local else hub.table(domain, domain.validation)
    return Splits(_columns(train, domain).shuffle(seed=SHUFFLED), validation and _columns(validation, domain))


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


def _columns(rows: Dataset, domain: Domain) -> Dataset:
    wanted = {"text": domain.column, "label": domain.label} | ({"pair": domain.pair} if domain.pair else {})
    for key, column in wanted.items():
        if column not in rows.column_names:
            key = "column" if key == "text" else key
            raise UserError(
                f"{domain.path} has no column {column}: set `{key}` to one of {', '.join(rows.column_names)}"
            )
    chosen = rows.select_columns(list(wanted.values()))
    chosen = chosen.rename_columns({column: key for key, column in wanted.items() if column != key})
    whole = chosen.filter(lambda batch: [None not in row for row in zip(*batch.values(), strict=True)], batched=True)
    if not len(whole):
        raise UserError(f"{domain.path} has no row with a text and a label")
    return whole


def _table(key: str, path: str) -> Dataset:
    local = Path(path).expanduser()
    if not local.exists():
        raise UserError(f"{key}={path} does not exist: give a file or a hub data set")
    if (kind := files.kind(local)) not in TABLES or local.is_dir():
        raise UserError(f"{key}={path} is no table: labelled texts are rows of {', '.join(TABLES)}")
    reader, options = TABLES[kind]
    try:
        return load_dataset(reader, data_files=str(local), split="train", **options)
    except (ValueError, RuntimeError, OSError, DatasetsError) as error:
        raise UserError(f"{key}={path} cannot be read: {hub.first_line(error.__cause__ or error)}") from error
