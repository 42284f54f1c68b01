"""The store: Delta tables as the system of record, and `scores.duckdb`, the read-only file of views over them.

Every reader, including this package, uses the views. A partition is replaced as a whole or not at all. Readers never
block a writer, because published views name files that are never changed in place.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import polars as pl
from filelock import FileLock

from icon_assets.core.errors import DiskRefused, IconError, StoreDamaged
from icon_assets.core.store.contents import as_json, contents_of
from icon_assets.core.store.delta import (
    CONTENTS,
    DAMAGED,
    LIVE,
    LOG,
    Commit,
    Snapshot,
    read_commit,
    read_log,
    retried,
    store_disk_errors,
    unreadable,
)
from icon_assets.core.store.queries import Answer, Bounds, MadeElsewhere, Published, ask, made_for, spill_directory
from icon_assets.core.store.schema import (
    PARTITIONED_BY,
    RECORDED_BY,
    SQL_TYPES,
    arrow_rows,
    literal,
    literals,
    schemas,
    sql_text,
    view_comments,
)
from icon_assets.core.store.statements import reading
from icon_assets.core.store.views import Views, make_views, views_of

# Views use only plain SQL, so that an older DuckDB can read the file too.
_STORAGE_VERSION = "v1.0.0"
# Merging rewrites the partition of the new files, or the whole table if it has no partitions.
_COMPACT_FROM_FILES = 8
_COMPACT_WHOLE_FROM_FILES = 64


@dataclass(frozen=True)
class Store:
    """The tables under one directory. Safe for several processes. Every method opens and closes what it needs."""

    root: Path

    @property
    def path(self) -> Path:
        """The published DuckDB file: read-only views for everybody."""
        return self.root / "scores.duckdb"

    def replace(self, table: str, frame: pl.DataFrame, **partition: str) -> None:
        """Replace the rows whose partition columns equal `partition` (none given: the whole table), atomically.

        Raises:
            IconError: another writer kept winning, or the disk can't be written.
        """
        self._commit(table, frame, partition)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows. Several writers may append at once. Small files are merged from time to time."""
        self._commit(table, frame, None)
        limit = _COMPACT_FROM_FILES if table in PARTITIONED_BY else _COMPACT_WHOLE_FROM_FILES
        if max(Counter(Path(file).parent for file in self.files(table)).values(), default=0) >= limit:
            with suppress(StoreDamaged):  # readers of the file get the error; the rows themselves are safe
                self._compact(table)

    def append_new(self, table: str, frame: pl.DataFrame, keys: Sequence[str]) -> int:
        """Add the rows whose `keys` are not in the table yet, and return their number. Two writers never add a row
        twice.

        Rows with equal keys must have equal partition columns, because only those partitions are read.
        """
        with self._lock(f"{table}.append"):
            fresh = frame.unique(list(keys), keep="first", maintain_order=True)
            if self.files(table):
                condition = " AND ".join(f'f."{key}" IS NOT DISTINCT FROM t."{key}"' for key in keys)
                places = {column: fresh[column].unique().to_list() for column in PARTITIONED_BY.get(table, ())}
                within = " AND ".join(["true", *(f'list_contains(${column}, "{column}")' for column in places)])
                rows = f'FROM fresh f ANTI JOIN (FROM delta."{table}" WHERE {within}) t ON {condition}'
                with self.damage_named(), self.connect() as con:
                    con.register("fresh", fresh.to_arrow())
                    fresh = con.sql(rows, params=places or None).pl()
            if fresh.height:
                self.append(table, fresh)
            return fresh.height

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A connection to an in-memory DuckDB with the views of `views.sql` over the tables as they are now. Close it
        after use."""
        return self._views().over(self._live_files())

    def _views(self) -> Views:
        return views_of(self.root, os.getpid())

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """The result of one SELECT over the tables as they are now, with `$name` parameters."""
        with self.damage_named(), self.connect() as con:
            return con.sql(reading(con, sql)[-1], params=dict(parameters) if parameters else None).pl()

    def batches(self, sql: str, parameters: Mapping[str, Any], rows: int) -> Iterator[pl.DataFrame]:
        """Like `query`, for results that may be too large for memory, in chunks of about so many rows."""
        with self.damage_named(), self.connect() as con:
            for batch in con.sql(reading(con, sql)[-1], params=dict(parameters)).to_arrow_reader(rows):
                yield pl.DataFrame(batch)

    def query_pool(self, sql: str, **parameters: str | int | None) -> pl.DataFrame:
        """Like `query`, for questions of every shard about the whole pool. Results are cached until a shard is ingested
        or leaves."""
        return _pool_answer(self, sql, tuple(parameters.items()), self.files("shards"), self.files("samples"))

    def query_published(self, sql: str) -> pl.DataFrame:
        """Only the rows of `answer`."""
        return self.answer(sql).frame

    def answer(self, sql: str, bounds: Bounds | None = None) -> Answer:
        """The answer to a user's SQL on the published file. It can only read this store's files, within limits.

        A file that was published in a different place is published again first. If it can't be written, a temporary
        copy is published.

        Raises:
            IconError: nothing is published yet, the text is not a query, DuckDB refused it, or it reached a limit.
        """
        if not self.path.exists():
            raise IconError(f"{self.path}: nothing is published yet; run `icon-assets run` first")
        root = self.root.resolve()
        bounds = bounds or Bounds()
        with spill_directory() as spill:
            with suppress(MadeElsewhere):
                return ask(Published(self.path, root, root / "tables"), sql, bounds, spill)
            database = self._published_again(spill)
            return ask(Published(database, database.resolve().parent, root / "tables"), sql, bounds, spill)

    def publish_here(self) -> None:
        """Publish again if the published file was made for a different place and this one is writable."""
        if self.path.exists() and made_for(self.path) != self.root.resolve():
            with suppress(DiskRefused):
                self.publish()

    def _published_again(self, otherwise: Path) -> Path:
        with suppress(DiskRefused):
            self.publish()
            return self.path
        self._write_published(otherwise / self.path.name, otherwise)
        return otherwise / self.path.name

    def publish(self) -> None:
        """Put a fresh `scores.duckdb` in place of the old one. Readers of the old file are not disturbed.

        Raises:
            IconError: the disk refused.
        """
        with self._lock("publish"), store_disk_errors(self.path.name):
            for left in self.root.glob(".scores.*.partial*"):  # left by a killed process: this process holds the lock
                left.unlink()
            partial = self.root / f".scores.{uuid.uuid4().hex[:8]}.partial"
            try:
                self._write_published(partial, self.root)
                partial.chmod(0o444)
                self.path.with_name("scores.duckdb.wal").unlink(missing_ok=True)
                partial.rename(self.path)
            finally:
                partial.unlink(missing_ok=True)
                partial.with_name(partial.name + ".wal").unlink(missing_ok=True)

    def columns(self, table: str) -> dict[str, str] | None:
        """Names and types of a table's columns on disk, in the types of schema.sql; None before its first row."""
        from deltalake import DeltaTable

        place = self._place(table)
        if not DeltaTable.is_deltatable(str(place)):
            return None
        fields = DeltaTable(str(place)).schema().fields
        return {field.name: SQL_TYPES.get(str(getattr(field.type, "type", "")), str(field.type)) for field in fields}

    def _write_published(self, target: Path, root: Path) -> None:
        """Write the published file as `target`, to be read under its name in `root`."""
        with duckdb.connect() as con:
            con.execute(f"ATTACH {literal(str(target))} AS published (STORAGE_VERSION {literal(_STORAGE_VERSION)})")
            con.execute("USE published")
            self._describe(con, root.resolve())
            con.execute("USE memory; DETACH published")

    def _describe(self, con: duckdb.DuckDBPyConnection, root: Path) -> None:
        """Create the schema `delta` (one view per table, over its live files) and the published views."""
        live = self._live_files()
        con.execute(f"CREATE SCHEMA delta; {_origin_view(root, root / self.path.name)} {_files_view(live)}")
        make_views(con, live, guarded=True)
        con.execute(f"{sql_text('views.sql')}\n{view_comments()}")

    def _live_files(self) -> dict[str, tuple[str, ...] | StoreDamaged]:
        """A damaged table stops only readers of that table."""
        return {table: self._files_or_damage(table) for table in schemas()}

    def _files_or_damage(self, table: str) -> tuple[str, ...] | StoreDamaged:
        try:
            return self.files(table)
        except StoreDamaged as damage:
            return damage

    def files(self, table: str) -> tuple[str, ...]:
        """The live Parquet files of a table. Files are never changed; changes go to new files.

        Raises:
            StoreDamaged: the table's log can't be read.
        """
        return self.snapshot(table).files

    def snapshot(self, table: str) -> Snapshot:
        """The table as it is now.

        Raises:
            StoreDamaged: the table's log can't be read.
        """
        place = self._place(table)
        if (known := LIVE.get(place)) is not None and known.is_current():
            return Snapshot(known.table_id, int(known.commit.stem), known.files)
        return read_log(place)

    def commits(self, table: str, first: int, last: int) -> "Iterator[Commit | None]":
        """The descriptions of commits number `first` to `last`; None for a commit whose description no longer
        exists."""
        for number in range(first, last + 1):
            yield read_commit(self._place(table) / LOG / f"{number:020}.json")

    def within(self, table: str, file: str) -> Path:
        """The path of one of the table's files below its folder."""
        return Path(file).relative_to(self._place(table))

    def now_after(self, table: str, column: str) -> datetime:
        """The time for a new row where the newest row counts: now, but later than all rows, even if the clock was set
        back."""
        newest = self.query(f'SELECT max("{column}") FROM delta."{table}"').item()  # noqa: S608  (names of schema.sql)
        now = datetime.now(UTC)
        return now if newest is None else max(now, newest + timedelta(microseconds=1))

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Turn an error in reading the store into one line that names the table and the file."""
        try:
            yield
        except duckdb.Error as error:
            if (damage := self.damage_of(error)) is not None:
                raise damage from error
            raise

    def damage_of(self, error: Exception) -> StoreDamaged | None:
        """The damage of the store that caused an error, if any."""
        if found := DAMAGED.search(str(error)):
            return StoreDamaged(*found.groups())
        # Damaged logs are reported by the views. Not every error names its file.
        files = [each for table in schemas() for each in self.damages(table) if each.part != LOG]
        return next((each for each in files if each.part in str(error)), next(iter(files), None))

    def damages(self, table: str) -> Iterator[StoreDamaged]:
        """The parts of a table that can't be read: its log, or files, which are read completely."""
        try:
            files = self.files(table)
        except StoreDamaged as damage:
            yield damage
            return
        for file in files:
            if why := unreadable(Path(file)):
                yield StoreDamaged(table, self.within(table, file).as_posix(), why)

    def _place(self, table: str) -> Path:
        if table not in schemas():
            raise KeyError(f"{table}: not a table of schema.sql")
        return self.root / "tables" / table

    def locked(self, name: str) -> AbstractContextManager[None]:
        """A lock for one process at a time. The kernel releases it when the process is killed."""
        return self._lock(name)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        with store_disk_errors("locks"):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _commit(self, table: str, frame: pl.DataFrame, replaced: Mapping[str, str] | None) -> None:
        """Add rows, or replace the rows with these values. The commit itself describes what it wrote, so that no crash
        can separate the two."""
        from deltalake import CommitProperties, write_deltalake

        place = self._place(table)
        data = arrow_rows(table, frame)
        partition_by = list(PARTITIONED_BY.get(table, ())) or None
        mode = "append" if replaced is None else "overwrite"
        predicate = " AND ".join(f"{name} = {literal(value)}" for name, value in (replaced or {}).items()) or None
        written = contents_of(data, RECORDED_BY.get(table, ()))
        told = json.dumps({"replaced": replaced, "written": as_json(written)})

        def write() -> None:
            place.mkdir(parents=True, exist_ok=True)
            properties = CommitProperties(custom_metadata={CONTENTS: told})
            how: dict[str, Any] = {"mode": mode, "predicate": predicate, "partition_by": partition_by}
            write_deltalake(str(place), data, commit_properties=properties, **how)

        with self._damage_before_disk(table):
            retried(write, table)

    @contextmanager
    def _damage_before_disk(self, table: str) -> Iterator[None]:
        """A table that can't be written because it can't be read is not a disk error."""
        try:
            yield
        except DiskRefused as refused:
            known = refused.is_of_disk or not self._place(table).is_dir()
            raise (refused if known else next(self._changed_files(table), refused)) from refused

    def _changed_files(self, table: str) -> Iterator[StoreDamaged]:
        """The files of a table that can't be read, or whose size differs from its log, so that Delta can't read
        them."""
        from deltalake import DeltaTable

        yield from self.damages(table)
        added = pl.DataFrame(DeltaTable(str(self._place(table))).get_add_actions(flatten=True))
        for name, size in added.select("path", "size_bytes").iter_rows():
            if (self._place(table) / unquote(name)).stat().st_size != size:
                yield StoreDamaged(table, name, "has another size than the table's log says")

    def _compact(self, table: str) -> None:
        """Merge small files. Old ones stay on disk for running queries until Delta's retention time is over."""
        from deltalake import DeltaTable

        with self._damage_before_disk(table):
            retried(lambda: DeltaTable(str(self._place(table))).optimize.compact(), table)


@lru_cache(maxsize=8)
def _pool_answer(
    store: Store, sql: str, parameters: tuple[tuple[str, str | int | None], ...], *_files: tuple[str, ...]
) -> pl.DataFrame:
    return store.query(sql, dict(parameters))


def _origin_view(root: Path, path: Path) -> str:
    """A view with the place of the published file. A copy of the file names the files of the old place, and must not
    read them.

    DuckDB shows a view where the attached files are, but not which file it is in itself. A mark that only this file and
    its copies contain finds them all."""
    says = (
        f"This file was published as {path} and can be read only there. If its workspace was copied or moved, run "
        "`icon-assets -w WORKSPACE status` on the new place, then open the file again."
    )
    return f"""
        CREATE VIEW delta.origin AS
        SELECT {literal(str(root))} AS root, {literal(says)} AS says, NOT EXISTS (
            FROM duckdb_views() v JOIN duckdb_databases() d USING (database_oid)
            WHERE v.schema_name = 'delta' AND v.view_name = 'origin' AND contains(v.sql, {literal(uuid.uuid4().hex)})
                AND d.path IS DISTINCT FROM {literal(str(path))}
        ) AS is_here;"""  # noqa: S608  (literals)


def _files_view(live: "Mapping[str, tuple[str, ...] | StoreDamaged]") -> str:
    files = [file for each in live.values() if not isinstance(each, StoreDamaged) for file in each]
    return f"CREATE VIEW delta.files AS SELECT unnest([{literals(files)}]::VARCHAR[]) AS file;"
