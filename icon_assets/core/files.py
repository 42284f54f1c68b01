"""Files that appear as a whole or not at all, and disk errors."""

import errno
import fcntl
import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from icon_assets.core.errors import DiskRefused, IconError

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
# Messages of libraries that write files themselves: DuckDB, Delta Lake, polars, safetensors, torch.
_IN_WORDS = re.compile(
    r"No space left|quota exceeded|Read-only file system|File too large|\(os error 13\)|PytorchStreamWriter "
    r"failed|unexpected pos|iostream error",
    re.IGNORECASE,
)


@contextmanager
def disk_errors(part: str) -> Iterator[None]:
    """Turn a disk error into one line with the fix. Other errors pass through."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        refused = number in _REFUSALS if number else _IN_WORDS.search(str(error))
        if not refused or isinstance(error, IconError):
            raise
        raise DiskRefused(part, error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Wait until no other process writes `target`, and remove the remains of a killed process beside it.

    Raises:
        DiskRefused: the disk is full or read-only, now or while `target` is written.
    """
    with disk_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            _clean_up(target)
            yield


def _clean_up(target: Path) -> None:
    """Clean up after a killed writer: remove its incomplete directory, and restore the one that it had set aside."""
    for ending in ("old", "partial"):
        for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.{ending}"):
            if ending == "old" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target`; on success its files are flushed and it takes the target's name.

    A crash leaves the target absent or as it was. A target that exists already is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        publish_directory(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_directory(partial: Path, target: Path) -> None:
    """Flush every file of `partial` to disk and give it the name `target` (same file system)."""
    for path in partial.rglob("*"):
        _sync(path)
    _sync(partial)
    if target.exists():
        old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(target)
    _sync(target.parent)


def new_file(target: Path, text: str) -> None:
    """Write a file that appears as a whole or not at all. The next writer overwrites the remains of a killed one."""
    partial = target.with_name(f".{target.name}.partial")
    with _locked(partial) as handle:
        try:
            handle.truncate(0)
            handle.write(text.encode("utf-8"))
            handle.flush()
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file, open for this process alone. The kernel releases the lock when a process is killed."""
    while True:
        with path.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # The previous holder of the lock may have renamed the file that was waited for.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                yield handle
                return
