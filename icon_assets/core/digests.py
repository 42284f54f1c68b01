"""Ids and fingerprints. Only this module derives names from content. Changing a rule here renames everything stored."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import polars as pl

ID_BYTES = 16
_CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """JSON text that is equal exactly when the values are: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 bytes of the SHA-256 of the canonical JSON of `value`, as 32 hex characters."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).digest()[:ID_BYTES].hex()


def lines_digest(lines: Iterable[str]) -> str:
    """Digest of a sequence of texts, without their joined form in memory. Order matters."""
    sha = hashlib.sha256()
    for line in lines:
        sha.update(line.encode("utf-8", "surrogatepass"))
        sha.update(b"\n")
    return sha.digest()[:ID_BYTES].hex()


def file_digest(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as handle:
        return stream_digest(handle)


def stream_digest(handle: BinaryIO) -> str:
    """Digest of the bytes of an open file, from its current position."""
    sha = hashlib.sha256()
    while chunk := handle.read(_CHUNK):
        sha.update(chunk)
    return sha.digest()[:ID_BYTES].hex()


def files_digest(root: Path, names: Iterable[str]) -> str:
    """Digest of the named files below `root`: their relative names and their bytes."""
    return digest([[name, file_digest(root / name)] for name in sorted(names)])


def directory_digest(root: Path) -> str:
    """Digest of every file below `root`."""
    return files_digest(root, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()])


def draw_key(seed: int, *parts: str) -> str:
    """A pseudo-random sort key that depends only on the seed and the item, so that a draw is kept when the pool
    grows."""
    return hashlib.sha256("\x1f".join([str(seed), *parts]).encode("utf-8")).hexdigest()


def share_ceiling(share: float) -> str | None:
    """Ids below it are a random share of all ids, because ids are digests. None: every id. A larger share contains a
    smaller one."""
    return None if share >= 1 else f"{round(share * 16 ** (2 * ID_BYTES)):0{2 * ID_BYTES}x}"


def frame_digest(frame: "pl.DataFrame") -> str:
    """Digest of a table's columns and rows in their order."""
    return lines_digest([canonical_json(frame.columns), *(repr(row) for row in frame.iter_rows())])
