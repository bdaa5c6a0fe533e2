"""Files and folders that are whole or not there, whenever it is that a run is killed, and files that are as written."""

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Bytes below which a disk counts as full once something could not be written to it.
LEFT = 2**16


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """PATH.unfinished, to write a file or a folder to: at the end, once it is on disk, it becomes `path`.

    A file takes the place of one that is there, a folder that of none. What an error leaves stays under the other name
    until the next attempt; Ctrl-C leaves nothing. OSError where the disk is full, however a library tells of it.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
    except KeyboardInterrupt:
        remove(unfinished)
        raise
    except Exception as error:
        if shutil.disk_usage(path.parent).free < LEFT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    for each in [*unfinished.rglob("*"), unfinished]:
        settle(each)
    unfinished.replace(path)
    settle(path.parent)


def vouch(path: Path, written: Path) -> None:
    """Leaves PATH.sha256, by which `vouched` tells what is about to become `path` from all else."""
    with whole(voucher(path)) as file:
        file.write_text(sha256(written), encoding="ascii")


def vouched(path: Path) -> bool:
    """Whether it is what was written; a warning says that it is not."""
    good = voucher(path).is_file() and voucher(path).read_bytes() == sha256(path).encode()
    if not good:
        warnings.warn(f"{path} is not what was written, and is not gone on from", stacklevel=3)
    return good


def voucher(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Waits until what a file holds, or the names that a folder has, would outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
