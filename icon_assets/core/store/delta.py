"""Delta tables on disk: their live files, commits with retries, disk errors."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb

from icon_assets.core.errors import DiskRefused, IconError, StoreDamaged
from icon_assets.core.files import disk_errors
from icon_assets.core.store.contents import Contents, Group, from_json

LOG = "_delta_log"
CONTENTS = "icon_contents"  # in the description of each commit of ours
_ATTEMPTS = 40


@dataclass(frozen=True)
class LiveFiles:
    """The live files of a Delta table as of one commit."""

    commit: Path
    written_ns: int
    files: tuple[str, ...]
    table_id: str

    def is_current(self) -> bool:
        """Whether nobody has committed since. Commits are numbered, and a folder that was created again has a different
        time."""
        following = self.commit.with_name(f"{int(self.commit.stem) + 1:020}.json")
        return not following.exists() and self.commit.exists() and self.commit.stat().st_mtime_ns == self.written_ns


LIVE: dict[Path, LiveFiles] = {}  # per process, by table


@dataclass(frozen=True)
class Snapshot:
    """A table as of one commit: its id (which changes when the table is created again), the commit's number, the live
    files."""

    table_id: str = ""
    version: int = -1
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """The description of a commit: the values of the rows that it replaced (None: it only added rows), and what it
    wrote. `written` is None for commits of other programs. `added`: names of its files."""

    replaced: Mapping[str, str] | None
    written: Mapping[Group, Contents] | None
    keeps_rows: bool
    added: tuple[str, ...]


def read_log(place: Path) -> Snapshot:
    """The table at `place` according to its log; no files where there is no table."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        if not DeltaTable.is_deltatable(str(place)):
            if any(place.rglob("*.parquet")):
                raise StoreDamaged(place.name, LOG, "is not there, though files of rows are")
            return Snapshot()
        table = DeltaTable(str(place))
        files = tuple(sorted(unquote(uri.removeprefix("file://")) for uri in table.file_uris()))
        table_id = str(table.metadata().id)
        version = table.version()
    except (DeltaError, OSError, ValueError) as error:
        raise StoreDamaged(place.name, LOG, f"can't be read ({one_line(error)})") from error
    commit = place / LOG / f"{version:020}.json"
    if commit.exists():  # a log that was cleaned up has only a checkpoint
        LIVE[place] = LiveFiles(commit, commit.stat().st_mtime_ns, files, table_id)
    return Snapshot(table_id, version, files)


def one_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    return " ".join(plain.split())[:160].replace(";", ",") or type(error).__name__


def read_commit(path: Path) -> Commit | None:
    try:
        # Not splitlines: statistics contain texts, and these may contain U+2028.
        actions = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError):
        return None
    info = next((each["commitInfo"] for each in actions if "commitInfo" in each), {})
    files = [change for each in actions for change in (each.get("add"), each.get("remove")) if change]
    told = json.loads(info.get(CONTENTS, "null"))
    return Commit(
        told and told["replaced"],
        from_json(told["written"]) if told else None,
        keeps_rows=not any(change.get("dataChange", True) for change in files),
        added=tuple(unquote(each["add"]["path"]) for each in actions if "add" in each),
    )


# How views report that a table is damaged, and how DuckDB and this code name a damaged file.
DAMAGED = re.compile(r"store table (\w+): (\S+) ([^;]*);")


def unreadable(path: Path) -> str:
    """Why a Parquet file can't be read completely; '' when it can."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            for _ in file.iter_batches():
                pass
    except FileNotFoundError:
        return "is gone"
    except (OSError, pa.ArrowException) as error:
        return f"can't be read ({one_line(error)})"
    return ""


def retried(work: Callable[[], Any], table: str) -> None:
    """Optimistic concurrency: a commit that lost a race is retried on the new state."""
    from deltalake.exceptions import CommitFailedError

    for attempt in range(_ATTEMPTS):
        try:
            with store_disk_errors(f"table {table}"):
                work()
        except CommitFailedError:
            time.sleep(min(0.02 * 2**attempt, 1.0))
        else:
            return
    raise IconError(f"store table {table}: another writer kept changing it; run again: finished work is kept")


@contextmanager
def store_disk_errors(part: str) -> Iterator[None]:
    """Turn a disk error into one line with the fix. A lost race passes through."""
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        with disk_errors(f"store {part}"):
            yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError, duckdb.IOException) as error:
        raise DiskRefused(f"store {part}", error) from error
