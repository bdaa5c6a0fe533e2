"""What tells whether a corpus is what it was: a hash of every block, wherever its text comes from."""

import hashlib

import pyarrow
from datasets import Dataset, IterableDataset

from .mixture import Corpus

#: Blocks that are read at a time.
AT_A_TIME = 4096


def digests(corpus: Corpus) -> dict[str, str]:
    """SHA-256 of what is trained on and held out, by domain, hexadecimal; nothing of streams, which have no end."""
    found = {}
    for name, held_out in corpus.validation.items():
        train = corpus.train.get(name)
        if not isinstance(train, IterableDataset):
            found[name] = digest([held_out] if train is None else [train, held_out])
    return found


def digest(parts: list[Dataset]) -> str:
    seen = hashlib.sha256()
    for part in parts:
        for blocks in part.with_format("arrow").iter(AT_A_TIME):
            for column in blocks.columns:
                update(seen, column.combine_chunks())
    return seen.hexdigest()


def update(seen: "hashlib._Hash", values: pyarrow.Array) -> None:
    """Adds numbers or strings, and lists of them, of any depth."""
    seen.update(f"{values.type} {len(values)}".encode())
    if pyarrow.types.is_nested(values.type):
        if not pyarrow.types.is_fixed_size_list(values.type):
            seen.update(values.value_lengths().to_numpy(zero_copy_only=False).tobytes())
        update(seen, values.flatten())
    elif pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        for value in values.to_pylist():
            seen.update(repr(value).encode())
    else:
        seen.update(values.to_numpy(zero_copy_only=False).tobytes())
