"""Texts with a label each: from a file's rows or the hub to tokens, one text or pair of texts a row."""

import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..config import Domain
from ..errors import UserError
from . import order, sources, tables
from .packing import identity
from .sources import Splits

#: A name that says no more than a number.
UNNAMED = re.compile(r"label_?\d+", re.IGNORECASE)
#: What datasets has for a ClassLabel that is none.
NO_LABEL = -1
#: Part of the cache's key: raise it when the same rows have to give other tokens.
VERSION = 1


class Labels(NamedTuple):
    """names: what the classes are called, in the order of their numbers. numbers: of every label in the rows. positive:
    the class whose F1 is told where there are two, the rows' own 1 where they have numbers."""

    names: list[str]
    numbers: dict[Any, int]
    positive: int


def load(domain: Domain) -> Splits:
    """Rows with the columns text, pair (where the domain has one) and label; UserError as of `tables.load`."""
    if domain.order:
        texts = sources.load(domain, streaming=False)
        return Splits(*(None if each is None else order.pairs(each) for each in texts))
    wanted = {"text": "column", "label": "label"} | ({"pair": "pair"} if domain.pair else {})
    splits = tables.load(domain, wanted, texts=("text", "pair"))
    return Splits(*(None if each is None else _labelled(each, domain) for each in splits))


def _labelled(rows: Dataset, domain: Domain) -> Dataset:
    """Without those whose label is none; UserError where labels are no classes."""
    feature = rows.features["label"]
    if isinstance(feature, ClassLabel):
        return rows.filter(lambda labels: [each != NO_LABEL for each in labels], input_columns="label", batched=True)
    if not isinstance(feature, Value):
        raise UserError(
            f"{domain.path}: column {domain.label} holds lists, and a text has one label; give another column"
        )
    if any(isinstance(each, float) and not each.is_integer() for each in rows.unique("label")):
        raise UserError(f"{domain.path}: column {domain.label} holds numbers and no classes; give another column")
    return rows


def labels(splits: Iterable[Splits], names: list[str] | None) -> Labels:
    """One numbering for all rows. names: what the teacher calls its classes; None: they are called as in the rows.

    By name where the teacher has every name of the rows, whatever their order there. By number where either side has
    numbers alone, which is told. UserError where both have names and they differ, for a number of no class, and for
    fewer than two classes.
    """
    named: dict[Any, str] = {}
    for rows in (each for split in splits for each in split if each is not None):
        feature = rows.features["label"]
        called = feature.int2str if isinstance(feature, ClassLabel) else _name
        named |= {label: called(label) for label in rows.unique("label")}
        if isinstance(feature, ClassLabel):
            named |= dict(enumerate(feature.names))
    if names is None:
        names = [named[label] for label in sorted(named)]
        if len(set(names)) < 2:
            raise UserError(f"the labels of the rows are {', '.join(names)}: a classifier needs two classes at least")
    numbers = _by_name(named, names) or _by_number(named, names)
    return Labels(names, numbers, numbers.get(1, 1))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) else str(label)


def _by_name(named: dict[Any, str], names: list[str]) -> dict[Any, int]:
    """Empty where not every name is found; upper and lower case are one where that leaves no doubt."""
    rows = set(named.values())
    alike = all(len({name.casefold() for name in each}) == len(set(each)) for each in (rows, names))
    same = str.casefold if alike else str
    known = {same(name): number for number, name in enumerate(names)}
    return {label: known[same(name)] for label, name in named.items()} if {*map(same, rows)} <= known.keys() else {}


def _by_number(named: dict[Any, str], names: list[str]) -> dict[Any, int]:
    rows, teacher = ", ".join(dict.fromkeys(named.values())), ", ".join(names)
    rows_speak = not all(name.removeprefix("-").isdigit() for name in named.values())
    teacher_speaks = not all(UNNAMED.fullmatch(name) for name in names)
    if rows_speak and teacher_speaks:
        raise UserError(
            f"the rows have the labels {rows}, and the teacher has {teacher}: call them alike, in the rows or by "
            "id2label in the teacher's config.json"
        )
    numbers = {label: int(label) for label in named if not (rows_speak and isinstance(label, str))}
    if len(numbers) < len(named) or not all(0 <= number < len(names) for number in numbers.values()):
        raise UserError(
            f"the rows have the labels {rows}, and the teacher's classes are 0 to {len(names) - 1} ({teacher}): give "
            "rows that are labelled so, or set data.domains.NAME.label to the column that is"
        )
    if rows_speak or teacher_speaks:
        told = ", ".join(f"{named[label]} is {names[number]}" for label, number in numbers.items())
        print(f"labels go by number: {told}", file=sys.stderr)
    return numbers


def encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, context: int, numbers: dict[Any, int], domain: str
) -> Dataset:
    """Rows as `load` gives them → columns `input_ids`, at most `context` tokens with those that mark beginning and end,
    `token_type_ids` where the tokenizer makes them, and `labels`.

    Of a pair, the longer text is cut first.
    """
    kept = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    features = {name: List(Value("int32")) for name in kept} | {"labels": Value("int64")}
    how = [VERSION, identity(tokenizer), tokenizer.truncation_side, kept, context, sorted(numbers.items(), key=repr)]
    given = {"tokenizer": tokenizer, "context": context, "numbers": numbers, "kept": kept}
    return tables.encoded(rows, _encoded, given, features, how, domain)


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
