"""A hub data set → its texts; all that can go wrong on the way is said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import httpx
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetsError

from ..config import Domain
from ..errors import UserError

#: Rows looked at to tell lines from documents, and lines put together into one text.
LOOKED_AT = 100
LINES = 100_000


def load(domain: Domain, streaming: bool, split: str) -> Dataset | IterableDataset:
    """The split's texts in the single column `text`.

    UserError if the hub or the data set cannot be reached, or if it lacks the configuration, split or column.
    """
    with _told(domain):
        return _documents(_text_column(_load(domain, split, streaming), domain))


def table(domain: Domain, streaming: bool, split: str) -> Dataset | IterableDataset:
    """The split with all its columns; UserError as above."""
    with _told(domain):
        return _load(domain, split, streaming)


@contextmanager
def _told(domain: Domain) -> Iterator[None]:
    """What datasets raises, as one line."""
    try:
        yield
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(f"data.path={domain.path}: {first_line(error.__cause__ or error)}") from error


def has_split(domain: Domain, split: str, streaming: bool) -> bool:
    """Whether a data set that has been loaded before has this split too."""
    try:
        _load(domain, split, streaming)
    except ValueError:
        # Another split came from the same place, so what is wrong is the split.
        return False
    return True


def _load(domain: Domain, split: str, streaming: bool) -> Dataset | IterableDataset:
    try:
        return datasets.load_dataset(domain.path, domain.name, split=split, streaming=streaming)
    except (OSError, httpx.HTTPError) as error:
        raise UserError(
            f"data.path={domain.path} could not be reached ({first_line(error)}): check the name and the network, "
            "or give a local file or folder instead"
        ) from error


def _text_column(texts: Dataset | IterableDataset, domain: Domain) -> Dataset | IterableDataset:
    # A stream may not know its columns before its first row.
    columns = texts.column_names or list(next(iter(texts), {}))
    if domain.column not in columns:
        raise UserError(f"{domain.path} has no column {domain.column}: set `column` to one of {', '.join(columns)}")
    texts = texts.select_columns([domain.column])
    return texts if domain.column == "text" else texts.rename_column(domain.column, "text")


def _documents(texts: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows that all end in a line break are the lines of one text (wikitext's are) and are put together again.

    Taken for documents, each line would be followed by the end-of-text token, which the teacher never saw there.
    """
    rows = [row["text"] for row in texts.take(LOOKED_AT) if row["text"]]
    if not rows or not all(row.endswith("\n") for row in rows):
        return texts
    return texts.map(_joined, batched=True, batch_size=LINES)


def _joined(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": ["".join(lines["text"])]}


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
