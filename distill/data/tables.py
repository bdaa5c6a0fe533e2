"""Rows with columns: from a table on disk or the hub, whole and in an order of their own."""

import csv
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, load_dataset
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher

from ..config import Domain
from ..errors import UserError
from . import files, hub
from .sources import Splits, sides

#: "None" and "NA" are words; only what is empty is missing.
EMPTY = {"keep_default_na": False, "na_values": [""]}
#: How datasets reads a table, by the extension of its file.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", EMPTY),
    ".tsv": ("csv", EMPTY | {"sep": "\t", "quoting": csv.QUOTE_NONE}),
}
#: Rows have no order that means anything, and those held out are taken from the end.
SHUFFLED = 0


def load(domain: Domain, wanted: dict[str, str], texts: Collection[str] = ()) -> Splits:
    """wanted: what columns are to be called, and the keys that choose them: {"text": "column", "label": "label"}.

    Rows that lack one of them are left out, and that is told. UserError for what is no table or cannot be reached, for
    columns that are missing, and for `texts` that are none.
    """
    if domain.path == "python":
        raise UserError("data.path=python has no such rows: give a .jsonl, .csv or .parquet file, or a hub data set")
    train, validation = sides(domain, _table, partial(hub.table, domain, False), streaming=False)
    train = _columns(train, domain, wanted, texts).shuffle(seed=SHUFFLED)
    return Splits(train, validation and _columns(validation, domain, wanted, texts))


def encoded(
    rows: Dataset,
    encode: Callable[..., Any],
    given: dict[str, Any],
    features: dict[str, Any],
    how: list[Any],
    domain: str,
) -> Dataset:
    """Rows through `encode`, batch by batch, as tensors; a second run reads them from disk.

    given: to `encode`, beside the batch. how: all that decides over what comes of the same rows.
    """
    made = rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        fn_kwargs=given,
        features=Features(features),
        new_fingerprint=Hasher.hash([encode.__module__, rows._fingerprint, *how]),
        desc=f"encoding {domain}",
    )
    return made.with_format("torch")


def _columns(rows: Dataset, domain: Domain, wanted: dict[str, str], texts: Collection[str]) -> Dataset:
    chosen = {name: str(getattr(domain, key)) for name, key in wanted.items()}
    if twice := [name for name, column in chosen.items() if list(chosen.values()).count(column) > 1]:
        keys = " and ".join(f"data.domains.NAME.{wanted[name]}" for name in twice)
        raise UserError(f"{domain.path}: {keys} are both {chosen[twice[0]]}; give each a column of its own")
    for name, column in chosen.items():
        if column not in rows.column_names:
            raise UserError(
                f"{domain.path} has no column {column}: set data.domains.NAME.{wanted[name]} to one of "
                f"{', '.join(rows.column_names)}"
            )
        feature = rows.features[column]
        if name in texts and getattr(feature, "dtype", None) not in ("string", "large_string", "null"):
            raise UserError(f"{domain.path}: column {column} holds no text, but {feature}; give another one")
    rows = rows.select_columns(list(chosen.values()))
    rows = rows.rename_columns({column: name for name, column in chosen.items() if column != name})
    whole = rows.filter(lambda batch: [None not in row for row in zip(*batch.values(), strict=True)], batched=True)
    if missing := len(rows) - len(whole):
        print(f"{domain.path}: {missing} of {len(rows)} rows lack one of {', '.join(chosen.values())}", file=sys.stderr)
    if not len(whole):
        raise UserError(f"{domain.path} has no row with {' and '.join(chosen.values())}")
    return whole


def _table(key: str, path: str) -> Dataset:
    local = Path(path).expanduser()
    if not local.exists():
        raise UserError(f"{key}={path} does not exist: give a file or a hub data set")
    if (kind := files.kind(local)) not in TABLES or local.is_dir():
        raise UserError(f"{key}={path} is no table: give a file of rows, {', '.join(TABLES)}")
    reader, options = TABLES[kind]
    try:
        return load_dataset(reader, data_files=str(local), split="train", **options)
    except (ValueError, RuntimeError, OSError, DatasetsError) as error:
        raise UserError(f"{key}={path} cannot be read: {hub.first_line(error.__cause__ or error)}") from error
