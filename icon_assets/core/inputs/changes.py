"""What changed in the pool folder: files are compared by size and time, and read only where those differ.

Nothing here looks into a file's rows, and nothing is stored: whoever asks says what is on record.
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
    """A file as it is on record."""

    n_bytes: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True)
class Found:
    """A file as it is on disk now, compared with the record.

    Attributes:
        kind: `touched`: another time, the same content; `settling`: written to a moment ago, so perhaps not whole yet.
        digest: of its content; '' for `settling`.
    """

    source: SourceFile
    kind: Kind
    n_bytes: int
    mtime_ns: int
    digest: str

    @property
    def known(self) -> Known:
        """What to put on record."""
        return Known(self.n_bytes, self.mtime_ns, self.digest)


def compare(sources: Sequence[SourceFile], known: Mapping[str, Known], settle_seconds: float) -> Iterator[Found]:
    """Each source file against what is known of its shard; the digest of an unchanged one is taken from there.

    A file that vanishes meanwhile is left out: it is gone.
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
    """What is not opened has no size and no time, only the reason."""
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
    """Seconds until the file counts as whole; a time in the future (another clock) is not waited for."""
    age = time.time() - path.stat().st_mtime
    return settle_seconds - age if age >= 0 else 0.0


def on_record(store: Store) -> dict[str, Known]:
    """What the store knows of the shards in the pool."""
    rows = store.query("SELECT shard, n_bytes, mtime_ns, digest FROM shards")
    return {shard: Known(*rest) for shard, *rest in rows.iter_rows()}


def keys_on_record(store: Store) -> dict[str, str]:
    """The file of every shard that was ever ingested: one that comes back finds its rows under the key it had."""
    return dict(store.query("SELECT shard, file FROM delta.shards").iter_rows())
