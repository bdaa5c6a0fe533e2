"""A task made of plain text: of two passages that stand side by side, which comes first?"""

import re
import zlib
from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

#: Where a passage may end: after a sentence, a statement or a block, and at an empty line.
ENDS = re.compile(r"(?<=[.!?;:})\]])\s+|\n\s*\n")
#: Characters that a passage has at least, unless its text ends before.
PASSAGE = 160
#: What a pair is called.
LABELS = ["swapped", "in order"]
TWO = Features({"text": Value("large_string"), "pair": Value("large_string")})
PAIRS = Features(TWO | {"label": ClassLabel(names=LABELS)})


def neighbours(texts: Dataset) -> Dataset:
    """Column `text` → text and pair: passages two by two, as they stand."""
    return texts.map(_neighbours, batched=True, batch_size=100, remove_columns=["text"], features=TWO, desc="pairing")


def pairs(texts: Dataset) -> Dataset:
    """Column `text` → text, pair and label: passages two by two, each of them in one pair, and half of these swapped.

    Which half is decided by the passages themselves, so that the same text gives the same pairs.
    """
    return texts.map(_pairs, batched=True, batch_size=100, remove_columns=["text"], features=PAIRS, desc="pairing")


def _neighbours(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"text": [], "pair": []}
    for text in batch["text"]:
        passages = list(_passages(text))
        # An odd one at the end has no neighbour.
        found["text"] += passages[: len(passages) // 2 * 2 : 2]
        found["pair"] += passages[1::2]
    return found


def _pairs(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
    two = list(zip(*_neighbours(batch).values(), strict=True))
    # A checksum is as good as a coin, and no attention map can compute it.
    ordered = [zlib.crc32("\n".join(each).encode()) >> 16 & 1 for each in two]
    shown = [each if kept else each[::-1] for each, kept in zip(two, ordered, strict=True)]
    return {"text": [one for one, _ in shown], "pair": [other for _, other in shown], "label": ordered}


def _passages(text: str) -> Iterator[str]:
    """Stretches of whole sentences."""
    begin = 0
    for end in ENDS.finditer(text):
        if end.start() - begin >= PASSAGE:
            yield text[begin : end.start()].strip()
            begin = end.end()
    if rest := text[begin:].strip():
        yield rest
