"""A task made of plain text: of two passages that stand side by side, which comes first?"""

import re
import zlib
from collections.abc import Iterator

from datasets import ClassLabel, Dataset, Features, Value

#: Where a passage may end: after a sentence, a statement or a block, and at an empty line.
ENDS = re.compile(r"(?<=[.!?;:})\]])\s+|\n\s*\n")
#: Characters that a passage has at least, unless its text ends before.
PASSAGE = 160
#: What a pair is called.
LABELS = ["swapped", "in order"]
PAIRS = Features({"text": Value("large_string"), "pair": Value("large_string"), "label": ClassLabel(names=LABELS)})


def pairs(texts: Dataset) -> Dataset:
    """Column `text` → text, pair and label: passages two by two, each of them in one pair, and half of these swapped.

    Which half is decided by the passages themselves, so that the same text gives the same pairs.
    """
    return texts.map(_pairs, batched=True, batch_size=100, remove_columns=["text"], features=PAIRS, desc="pairing")


def _pairs(batch: dict[str, list[str]]) -> dict[str, list[str | int]]:
    found: dict[str, list[str | int]] = {"text": [], "pair": [], "label": []}
    for text in batch["text"]:
        passages = list(_passages(text))
        for first, second in zip(passages[::2], passages[1::2], strict=False):
            # A checksum is as good as a coin, and no attention map can compute it.
            ordered = zlib.crc32(f"{first}\n{second}".encode()) >> 16 & 1
            for column, value in zip(("text", "pair"), (first, second) if ordered else (second, first), strict=True):
                found[column].append(value)
            found["label"].append(ordered)
    return found


def _passages(text: str) -> Iterator[str]:
    """Stretches of whole sentences."""
    begin = 0
    for end in ENDS.finditer(text):
        if end.start() - begin >= PASSAGE:
            yield text[begin : end.start()].strip()
            begin = end.end()
    if rest := text[begin:].strip():
        yield rest
