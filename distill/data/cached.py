"""What datasets keeps on disk, and what goes wrong there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from datasets.exceptions import DatasetGenerationError

from ..errors import UserError


@contextmanager
def cached() -> Iterator[None]:
    """Inside, rows are written to the cache: the error of who makes them is raised as it is, and that of the disk, an
    OSError, names the place."""
    try:
        try:
            yield
        except DatasetGenerationError as error:
            # datasets wraps both.
            raise (error.__cause__ if isinstance(error.__cause__, UserError | OSError) else error) from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(datasets.config.HF_DATASETS_CACHE)) from error
