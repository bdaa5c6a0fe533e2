"""One domain → its texts: data sets with a single column `text`, a document a row."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from datasets import Dataset, Features, IterableDataset, NamedSplit, Value

from ..config import Domain
from ..errors import UserError
from ..places import is_place
from . import files, hub, stdlib
from .cached import cached

Texts: TypeAlias = Dataset | IterableDataset

#: 64-bit offsets: a file is one document, and a table's texts may pass 2 GiB.
TEXT = Features({"text": Value("large_string")})
#: A path that ends like this is a file's, and no hub data set's.
FILE_SUFFIXES = {".txt", ".md", ".json", ".jsonl", ".parquet", ".csv", ".tsv", *files.OPEN}


class Splits(NamedTuple):
    """validation is None where the source has none: a part of the packed training blocks is then held out."""

    train: Texts
    validation: Texts | None


def load(domain: Domain, streaming: bool) -> Splits:
    """The texts that `domain.path` names: `python`, else a local file or folder that exists, else a hub data set.

    Local texts are cached in Arrow form under a hash of what they are made of. streaming: read while training,
    without a copy on disk. UserError for anything that does not exist, cannot be reached or is not text.
    """
    if domain.path == "python":
        return _embedded(domain, streaming)
    local, remote = partial(_local_texts, domain.column, streaming), partial(hub.load, domain, streaming)
    return sides(domain, local, remote, streaming)


def sides(domain: Domain, local: Callable[[str, str], Any], remote: Callable[[str], Any], streaming: bool) -> Splits:
    """What `domain.path` and `domain.validation` name; of a hub data set that has one, its split of that name.

    local: key and path of a file or folder → its rows; remote: a split of the hub's data set → its rows.
    """
    if is_local(domain.path):
        held_out = None if domain.validation is None else local("data.validation", domain.validation)
        return Splits(local("data.path", domain.path), held_out)
    train = remote(domain.split)
    if domain.validation is None:
        return Splits(train, remote("validation") if hub.has_split(domain, "validation", streaming) else None)
    if is_local(domain.validation):
        return Splits(train, local("data.validation", domain.validation))
    return Splits(train, remote(domain.validation))


def is_local(path: str) -> bool:
    """Whether the path is to be looked for on this machine alone: it exists, or cannot be a hub data set's name."""
    local = Path(path).expanduser()
    return is_place(path) or local.suffix.lower() in FILE_SUFFIXES or local.exists()


def _embedded(domain: Domain, streaming: bool) -> Splits:
    if domain.name not in stdlib.PARTS:
        raise UserError(f"data.name={domain.name} is no part of data.path=python: give {' or '.join(stdlib.PARTS)}")
    if domain.validation is not None:
        return Splits(
            _embedded_side(domain.name, "train", streaming),
            _local_texts(domain.column, streaming, "data.validation", domain.validation),
        )
    return Splits(*(_embedded_side(domain.name, side, streaming) for side in ("train", "validation")))


def _embedded_side(part: str, side: str, streaming: bool) -> Texts:
    given = {"part": part, "side": side}
    texts = _kept(_embedded_documents, given, f"{stdlib.fingerprint()}-{part}-{side}", side)
    return texts.to_iterable_dataset() if streaming else texts


def _embedded_documents(part: str, side: str) -> Iterator[dict[str, str]]:
    return ({"text": text} for text in stdlib.documents(part)[side])


def _local_texts(column: str, streaming: bool, key: str, path: str) -> Texts:
    found = _listed(key, Path(path).expanduser())
    # A tuple: datasets would take a list for shards, and read each file as if it were alone.
    chosen = {"paths": tuple(str(file) for file in found), "column": column}
    if streaming:
        return IterableDataset.from_generator(files.documents, features=TEXT, gen_kwargs=chosen)
    return _kept(files.documents, chosen, _fingerprint(found, column))


def _kept(documents: Callable[..., Any], given: dict[str, Any], fingerprint: str, side: str = "train") -> Dataset:
    """The documents in Arrow form on disk, under this name; what was there before is read again."""
    with cached():
        return Dataset.from_generator(
            documents, features=TEXT, gen_kwargs=given, split=NamedSplit(side), fingerprint=fingerprint
        )


def _listed(key: str, path: Path) -> list[Path]:
    """The file, or the files of the folder in order of name, without hidden ones."""
    if not path.exists():
        raise UserError(f"{key}={path} does not exist: give a file, a folder or a hub data set")
    if path.is_file():
        return [path.resolve()]
    folder = path.resolve()
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    found = [folder / name for name in sorted(names) if not any(part.startswith(".") for part in name.parts)]
    if not found:
        raise UserError(f"{key}={path} is an empty folder: give one with text files")
    return found


def _fingerprint(paths: list[Path], column: str) -> str:
    """Of the files by name, size and time of change, as reading them all would be slow; and of their reader."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    reader = Path(files.__file__).read_bytes()
    return hashlib.sha256(repr((states, column)).encode() + reader).hexdigest()[:16]
