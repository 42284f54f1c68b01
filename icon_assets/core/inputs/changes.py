"""Changes in the pool folder. Files are compared by size and time, and read only where those differ.

Nothing here reads a file's rows or stores anything. The caller gives the record to compare with.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.source_files import SourceFile, source_digest
from icon_assets.core.store.tables import Store

Kind = Literal["new", "changed", "touched", "unchanged", "settling"]


@dataclass(frozen=True)
class Known:
    """A file as recorded."""

    n_bytes: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True)
class Found:
    """A file on disk now, compared with the record.

    Attributes:
        kind: `touched`: a new time, but the same content; `settling`: written to a moment ago, so perhaps incomplete.
        digest: digest of its content; '' for `settling`.
    """

    source: SourceFile
    kind: Kind
    n_bytes: int
    mtime_ns: int
    digest: str

    @property
    def known(self) -> Known:
        """The record of this file."""
        return Known(self.n_bytes, self.mtime_ns, self.digest)


def compare(sources: Sequence[SourceFile], known: Mapping[str, Known], settle_seconds: float) -> Iterator[Found]:
    """Compare each source file with the record of its shard. The digest of an unchanged file is taken from the record.

    A file that disappears in the meantime is left out.
    """
    for source in sources:
        try:
            yield _compared(source, known.get(source.shard), settle_seconds)
        except FileNotFoundError:
            continue


def _compared(source: SourceFile, known: Known | None, settle_seconds: float) -> Found:
    if source.refused:
        return _refused(source, known)
    stat = source.path.stat()
    size = stat.st_size
    mtime = stat.st_mtime_ns
    if known is not None and (known.n_bytes, known.mtime_ns) == (size, mtime):
        return Found(source, "unchanged", size, mtime, known.digest)
    if _settles_in(source.path, settle_seconds) > 0:
        return Found(source, "settling", size, mtime, "")
    digest = source_digest(source)
    if known is None:
        return Found(source, "new", size, mtime, digest)
    return Found(source, "touched" if digest == known.digest else "changed", size, mtime, digest)


def _refused(source: SourceFile, known: Known | None) -> Found:
    """A file that is not opened has no size and no time, only the reason."""
    digest = source_digest(source)
    if known is None:
        return Found(source, "new", 0, 0, digest)
    return Found(source, "unchanged" if digest == known.digest else "changed", 0, 0, digest)


def wait_until_settled(path: Path, settle_seconds: float, patience_seconds: float = 60) -> None:
    """Return once nothing has been written to the file for `settle_seconds`, or it is gone.

    Raises:
        IconError: it is still being written to after `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    while path.exists() and (left := _settles_in(path, settle_seconds)) > 0:
        if time.monotonic() > deadline:
            raise IconError(f"{path}: is still being written to; run again when it is complete")
        time.sleep(left)


def _settles_in(path: Path, settle_seconds: float) -> float:
    """Seconds until the file counts as complete. A time in the future (of a different clock) is not waited for."""
    age = time.time() - path.stat().st_mtime
    return settle_seconds - age if age >= 0 else 0.0


def on_record(store: Store) -> dict[str, Known]:
    """The records of the shards in the pool."""
    rows = store.query("SELECT shard, n_bytes, mtime_ns, digest FROM shards")
    return {shard: Known(*rest) for shard, *rest in rows.iter_rows()}


def keys_on_record(store: Store) -> dict[str, str]:
    """The file of every shard that was ever ingested. A file that comes back gets its old key and rows."""
    return dict(store.query("SELECT shard, file FROM delta.shards").iter_rows())
