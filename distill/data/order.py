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
    """Column `text` → text, pair and label: passages two by two, each two in their order and swapped, side by side.

    Either label goes with the same words, so that neither knowing nor remembering them answers, and chance is a half.
    Which of the two stands first is decided by the passages themselves: whoever takes every tenth row has both labels.
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
    rows: dict[str, list[Any]] = {"text": [], "pair": [], "label": []}
    for two in zip(*_neighbours(batch).values(), strict=True):
        # A checksum is as good as a coin, and the same text gives the same rows.
        ordered = zlib.crc32("\n".join(two).encode()) >> 16 & 1
        for label in (ordered, 1 - ordered):
            one, other = two if LABELS[label] == "in order" else two[::-1]
            rows["text"].append(one)
            rows["pair"].append(other)
            rows["label"].append(label)
    return rows


def _passages(text: str) -> Iterator[str]:
    """Stretches of whole sentences."""
    begin = 0
    for end in ENDS.finditer(text):
        if end.start() - begin >= PASSAGE:
            yield text[begin : end.start()].strip()
            begin = end.end()
    if rest := text[begin:].strip():
        yield rest
