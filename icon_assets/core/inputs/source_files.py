"""The files of an input folder: finding them, identifying them, and refusing those that must not be opened."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from icon_assets.core.digests import digest, stream_digest
from icon_assets.core.errors import IconError
from icon_assets.core.inputs.formats import FORMATS
from icon_assets.core.inputs.sample import Rejected
from icon_assets.core.text import printable

NO_KEYS: Mapping[str, str] = MappingProxyType({})
_FORMER_DIGITS = 8


@dataclass(frozen=True)
class SourceFile:
    """A file of the pool: its partition key, its path below the folder as one line of text, and its real path.

    `refused` says why it must not be opened. Then it is a shard with only this reason in quarantine.
    """

    shard: str
    file: str
    path: Path
    refused: Rejected | None = None


def shard_key(file: str, on_record: Mapping[str, str] = NO_KEYS) -> str:
    """Partition key of a relative path: a readable slug plus its digest, safe in URLs and directory names.

    `on_record`: the file of each key in use. Keys used to end in 8 digits, which are too few if file names are chosen
    to collide. A file that was ingested under such a key keeps it.
    """
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", file).strip("-._")[:60] or "file"
    key = f"{slug}-{digest(file)}"
    former = key[: len(slug) + 1 + _FORMER_DIGITS]
    return former if on_record.get(former) == printable(file) else key


def discover(folder: Path, setting: str = "pool.path", on_record: Mapping[str, str] = NO_KEYS) -> list[SourceFile]:
    """The source files below `folder` (or the one file it is), sorted by path; hidden files are left out.

    Paths that are named like a source file but are not one, or lead out of the folder, are included, and `refused` says
    why. Keys are unique. `on_record`: see `shard_key`.

    Raises:
        IconError: the folder is missing or contains no such file.
    """
    if folder.is_file():
        return [SourceFile(shard_key(folder.name, on_record), printable(folder.name), folder.resolve())]
    if not folder.is_dir():
        raise IconError(f"{folder}: no such folder; create it or change {setting}")
    root = folder.resolve()
    found = [_source(root, path, on_record) for path in sorted(_candidates(root))]
    if not found:
        raise IconError(f"{folder}: contains no {', '.join(FORMATS)} file; put data there or change {setting}")
    return list(_told_apart(found))


def _told_apart(sources: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """Of files with the same key, the first is taken. The others are refused, each under a separate key."""
    taken: dict[str, list[str]] = {}
    for source in sources:
        files = taken.setdefault(source.shard, [])
        files.append(source.file)
        if len(files) > 1:
            why = Rejected("same_key", f"its name has the same digest as that of {files[0]}; rename one of them")
            source = replace(source, shard=f"{source.shard}-{len(files)}", refused=why)
        yield source


def _candidates(root: Path) -> Iterator[Path]:
    """Paths named like a source file, and folders that are not searched: links, and folders that can't be listed."""
    closed: list[OSError] = []
    for place, folders, files in os.walk(root, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in folders if Path(place, name).is_symlink())
        yield from (
            Path(place, name) for name in files if Path(name).suffix.lower() in FORMATS and not name.startswith(".")
        )
    yield from (Path(error.filename) for error in closed)


def _source(root: Path, path: Path, on_record: Mapping[str, str]) -> SourceFile:
    name = path.relative_to(root).as_posix()
    try:
        real = Path(os.path.realpath(path, strict=True)) if path.is_symlink() else path
        refused = _refusal(root, path, real)
    except OSError as error:
        real = path
        refused = _fault(error)
    return SourceFile(shard_key(name, on_record), printable(name), real, refused)


def _refusal(root: Path, path: Path, real: Path) -> Rejected | None:
    """Why a path must not be opened, found out without opening it."""
    if not real.is_relative_to(root):
        return Rejected("outside_folder", "a link that leads out of the folder; put the file itself there")
    mode = real.stat().st_mode
    if stat.S_ISDIR(mode):
        return _closed_folder(path)
    if not stat.S_ISREG(mode):
        return _not_regular()
    return None if os.access(real, os.R_OK) else Rejected("unreadable", "it may not be read; fix its permissions")


def _fault(error: OSError) -> Rejected:
    if isinstance(error, FileNotFoundError):
        return Rejected("missing", "the file is gone, or a link leads nowhere")
    return Rejected("unreadable", f"{error.strerror or type(error).__name__}; fix its permissions or remove it")


def _closed_folder(path: Path) -> Rejected:
    if path.is_symlink():
        return Rejected("not_a_file", "a link to a folder, which is not followed; put the files themselves there")
    return Rejected("unreadable", "the folder can't be listed; fix its permissions or remove it")


def _not_regular() -> Rejected:
    return Rejected("not_a_file", "a pipe, a device or a folder, not a file; it is not read")


@contextmanager
def opened(source: SourceFile) -> Iterator[BinaryIO]:
    """The open file. If it became a pipe or a device in the meantime, opening does not block and nothing is read.

    Raises:
        Rejected: `outside_folder`, `not_a_file`, `missing`, `unreadable`.
    """
    if source.refused:
        raise source.refused
    try:
        with _open_regular(source.path) as handle:
            yield handle
    except OSError as error:
        raise _fault(error) from error


def _open_regular(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular()
    return os.fdopen(descriptor, "rb")


def source_digest(source: SourceFile) -> str:
    """Digest of a source file's bytes. For an unreadable file, the digest of the reason."""
    try:
        with opened(source) as handle:
            return stream_digest(handle)
    except Rejected as error:
        return digest([error.reason])
