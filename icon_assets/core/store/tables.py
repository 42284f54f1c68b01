"""The store: Delta tables as the system of record, and `scores.duckdb`, the read-only file of views over them.

Table shapes live in `sql/schema.sql`, views in `sql/views.sql`. Every reader, ours included, goes through the views.
A partition is replaced whole or not at all; readers never block a writer, because published views name files that
are never changed in place.
"""

import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import polars as pl
from filelock import FileLock

from icon_assets.core.errors import DiskRefused, IconError, StoreDamaged
from icon_assets.core.files import disk_errors
from icon_assets.core.store.contents import Contents, Group, as_json, contents_of, from_json
from icon_assets.core.store.queries import Answer, Bounds, MadeElsewhere, Published, ask, made_for, spill_directory
from icon_assets.core.store.statements import reading

if TYPE_CHECKING:
    import pyarrow as pa

# Text columns, so that a value read back from a directory name is what was written.
PARTITIONED_BY: Mapping[str, tuple[str, ...]] = {
    "shards": ("shard",),
    "samples": ("shard",),
    "quarantine": ("shard",),
    "pair_scores": ("score_key", "origin"),
    "sample_features": ("score_key", "origin"),
    "sample_scores": ("shard", "score_key"),
    "predicted_scores": ("shard",),
    "selector_metrics": ("selector_id",),
    "selections": ("arm", "subset_id"),
    "trust_figures": ("arm",),
    "checkpoints": ("checkpoint_id",),
    "checkpoint_samples": ("checkpoint_id",),
    "loss_curves": ("checkpoint_id",),
    "eval_results": ("checkpoint_id",),
    "eval_items": ("checkpoint_id",),
    "answers": ("checkpoint_id",),
    "pairwise_results": ("checkpoint_id",),
}
# By which columns the rows of a table are told apart when their contents are put on record; else all of them together.
RECORDED_BY: Mapping[str, tuple[str, ...]] = {
    **PARTITIONED_BY, "contexts": ("score_key", "origin"), "control_scores": ("score_key",), "probe_features": ("score_key",),
    "judgements": ("checkpoint_id",),
}  # fmt: skip
LOG = "_delta_log"
_CONTENTS = "icon_contents"  # in the description of each commit of ours
# Of Delta, in the words of schema.sql.
_SQL_TYPES = {
    "string": "VARCHAR", "long": "BIGINT", "double": "DOUBLE", "boolean": "BOOLEAN", "timestamp": "TIMESTAMPTZ", "array": "FLOAT[]",
}  # fmt: skip
# Views carry only plain SQL: an older DuckDB reads the file too.
_STORAGE_VERSION = "v1.0.0"
_ATTEMPTS = 40
# Merging rewrites what lies beside the new files: a partition, or the whole of a table that has none.
_COMPACT_FROM_FILES, _COMPACT_WHOLE_FROM_FILES = 8, 64


def sql_text(name: str) -> str:
    """A file of the package's `sql/` folder."""
    return (resources.files("icon_assets") / "sql" / name).read_text("utf-8")


@lru_cache
def schemas() -> "dict[str, pa.Schema]":
    """Arrow schema of every table, as `schema.sql` declares it."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        names = [row[0] for row in con.execute("SELECT table_name FROM duckdb_tables() ORDER BY table_oid").fetchall()]
        return {name: con.sql(f'FROM "{name}"').to_arrow_table().schema for name in names}


def arrow_rows(table: str, frame: pl.DataFrame) -> "pa.Table":
    """Rows with exactly the columns and types that `schema.sql` declares."""
    schema = schemas()[table]
    return frame.select(schema.names).to_arrow().cast(schema)


def declared_columns(table: str) -> dict[str, str]:
    """Names and types of a table's columns as `schema.sql` declares them."""
    return {name: _duckdb_type(schemas()[table], name) for name in schemas()[table].names}


@lru_cache
def column_comments() -> dict[tuple[str, str], str]:
    """What `schema.sql` says of columns, by table and column."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        rows = con.execute("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL")
        return {(table, column): comment for table, column, comment in rows.fetchall()}


@lru_cache
def _view_comments() -> str:
    """The descriptions of `schema.sql`, as comments on the views of the same names."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        tables = con.execute("SELECT table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL").fetchall()
    columns = column_comments().items()
    return "\n".join(
        [f'COMMENT ON VIEW "{table}" IS {_literal(text)};' for table, text in tables]
        + [f'COMMENT ON COLUMN "{table}"."{column}" IS {_literal(text)};' for (table, column), text in columns]
    )


@dataclass(frozen=True)
class _Live:
    """The live files of a Delta table as of one commit."""

    commit: Path
    written_ns: int
    files: tuple[str, ...]
    table_id: str

    def is_current(self) -> bool:
        """Whether nobody has committed since: commits are numbered, and a folder made anew has another time."""
        following = self.commit.with_name(f"{int(self.commit.stem) + 1:020}.json")
        return not following.exists() and self.commit.exists() and self.commit.stat().st_mtime_ns == self.written_ns


_live: dict[Path, _Live] = {}  # per process, by table


@dataclass(frozen=True)
class Snapshot:
    """A table as of one commit: which table (one that is made again has another id), the commit's number, the live files."""

    table_id: str = ""
    version: int = -1
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """What a commit says of itself: which values the rows had that it replaced (None: it only added), and what it wrote;
    `written` is None where it was not ours. `added`: names of its files.
    """

    replaced: Mapping[str, str] | None
    written: Mapping[Group, Contents] | None
    keeps_rows: bool
    added: tuple[str, ...]


class Views:
    """An in-memory DuckDB with the views over one store's tables, kept: making them all anew takes longer than most queries."""

    def __init__(self) -> None:
        # Files are read from the disk's cache; a second one in DuckDB would only grow.
        config: dict[str, Any] = {"python_enable_replacements": False, "enable_external_file_cache": False}
        self._connection, self._lock = duckdb.connect(config=config), Lock()
        self._connection.execute("CREATE SCHEMA delta")
        self._files: dict[str, tuple[str, ...] | StoreDamaged] = {}

    def over(self, files: "Mapping[str, tuple[str, ...] | StoreDamaged]") -> duckdb.DuckDBPyConnection:
        """A connection that sees these files of each table."""
        with self._lock:
            changed = [table for table in files if self._files.get(table) != files[table]]
            _make_views(self._connection, {table: files[table] for table in changed})
            if not self._files:
                self._connection.execute(sql_text("views.sql"))
            self._files.update({table: files[table] for table in changed})
            return self._connection.cursor()


@lru_cache
def _views_of(root: Path, process: int) -> Views:
    return Views()


@dataclass(frozen=True)
class Store:
    """The tables under one directory. Safe for several processes; every method opens what it needs and closes it."""

    root: Path

    @property
    def path(self) -> Path:
        """The published DuckDB file: read-only views for everybody."""
        return self.root / "scores.duckdb"

    def replace(self, table: str, frame: pl.DataFrame, **partition: str) -> None:
        """Replace the rows whose partition columns equal `partition` (none given: the whole table), atomically.

        Raises:
            IconError: another writer kept winning, or the disk refused.
        """
        self._commit(table, frame, partition)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows; several writers may append at once. Many small files are merged now and then."""
        self._commit(table, frame, None)
        limit = _COMPACT_FROM_FILES if table in PARTITIONED_BY else _COMPACT_WHOLE_FROM_FILES
        if max(Counter(Path(file).parent for file in self.files(table)).values(), default=0) >= limit:
            with suppress(StoreDamaged):  # whoever reads the file hears of it; the rows themselves are safe
                self._compact(table)

    def append_new(self, table: str, frame: pl.DataFrame, keys: Sequence[str]) -> int:
        """Add the rows whose `keys` are not in the table yet; returns how many. Two writers never add one row twice.

        Rows of equal keys must have equal partition columns: only those partitions are looked at.
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
        """A connection to an in-memory DuckDB with the views of `views.sql` over the tables as they are now. Close it after use."""
        return self._views().over(self._live_files())

    def _views(self) -> Views:
        return _views_of(self.root, os.getpid())

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """The result of one SELECT over the tables as they are now, with `$name` parameters."""
        with self.damage_named(), self.connect() as con:
            return con.sql(reading(con, sql)[-1], params=dict(parameters) if parameters else None).pl()

    def batches(self, sql: str, parameters: Mapping[str, Any], rows: int) -> Iterator[pl.DataFrame]:
        """Like `query`, for what may be too large for memory: about so many rows at a time."""
        with self.damage_named(), self.connect() as con:
            for batch in con.sql(reading(con, sql)[-1], params=dict(parameters)).to_arrow_reader(rows):
                yield pl.DataFrame(batch)

    def query_pool(self, sql: str, **parameters: str | int | None) -> pl.DataFrame:
        """Like `query`, for what every shard asks about the whole pool: kept until a shard is ingested or leaves."""
        return _pool_answer(self, sql, tuple(parameters.items()), self.files("shards"), self.files("samples"))

    def query_published(self, sql: str) -> pl.DataFrame:
        """The rows of `answer` alone."""
        return self.answer(sql).frame

    def answer(self, sql: str, bounds: Bounds | None = None) -> Answer:
        """The answer to a user's SQL on the published file: it can only read, and only this store's files, within bounds.

        A file that was published in another place is published again first; where that can't be written, beside the query.

        Raises:
            IconError: nothing is published yet, the text is no query, DuckDB refused it, or it met a bound.
        """
        if not self.path.exists():
            raise IconError(f"{self.path}: nothing is published yet; run `icon-assets run` first")
        root, bounds = self.root.resolve(), bounds or Bounds()
        with spill_directory() as spill:
            with suppress(MadeElsewhere):
                return ask(Published(self.path, root, root / "tables"), sql, bounds, spill)
            database = self._published_again(spill)
            return ask(Published(database, database.resolve().parent, root / "tables"), sql, bounds, spill)

    def publish_here(self) -> None:
        """Publish again if the published file was made for another place, as far as this one may be written to."""
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
        """Put a fresh `scores.duckdb` in place of the old one. Readers of the old one finish undisturbed.

        Raises:
            IconError: the disk refused.
        """
        with self._lock("publish"), _disk_errors(self.path.name):
            for left in self.root.glob(".scores.*.partial*"):  # by a process that was killed: the lock is ours
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
        """Names and types of a table's columns as they are on disk, in the words of schema.sql; None before its first row."""
        from deltalake import DeltaTable

        place = self._place(table)
        if not DeltaTable.is_deltatable(str(place)):
            return None
        fields = DeltaTable(str(place)).schema().fields
        return {field.name: _SQL_TYPES.get(str(getattr(field.type, "type", "")), str(field.type)) for field in fields}

    def _write_published(self, target: Path, root: Path) -> None:
        """The published file as `target`, to be read under its name in `root`."""
        with duckdb.connect() as con:
            con.execute(f"ATTACH {_literal(str(target))} AS published (STORAGE_VERSION {_literal(_STORAGE_VERSION)})")
            con.execute("USE published")
            self._describe(con, root.resolve())
            con.execute("USE memory; DETACH published")

    def _describe(self, con: duckdb.DuckDBPyConnection, root: Path) -> None:
        """Make the schema `delta` (one view per table, over its live files) and the views of the contract."""
        live = self._live_files()
        con.execute(f"CREATE SCHEMA delta; {_origin_view(root, root / self.path.name)} {_files_view(live)}")
        _make_views(con, live, guarded=True)
        con.execute(f"{sql_text('views.sql')}\n{_view_comments()}")

    def _live_files(self) -> dict[str, tuple[str, ...] | StoreDamaged]:
        """What is damaged stops only who asks for it."""
        return {table: self._files_or_damage(table) for table in schemas()}

    def _files_or_damage(self, table: str) -> tuple[str, ...] | StoreDamaged:
        try:
            return self.files(table)
        except StoreDamaged as damage:
            return damage

    def files(self, table: str) -> tuple[str, ...]:
        """The live Parquet files of a table. None is ever changed: what changes gets a new one.

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
        if (known := _live.get(place)) is not None and known.is_current():
            return Snapshot(known.table_id, int(known.commit.stem), known.files)
        return _read_log(place)

    def commits(self, table: str, first: int, last: int) -> "Iterator[Commit | None]":
        """What commits number `first` to `last` say of themselves; None for one whose description is not there any more."""
        for number in range(first, last + 1):
            yield _read_commit(self._place(table) / LOG / f"{number:020}.json")

    def within(self, table: str, file: str) -> Path:
        """The path of one of the table's files below its folder."""
        return Path(file).relative_to(self._place(table))

    def now_after(self, table: str, column: str) -> datetime:
        """The time to write into a new row where the newest row counts: now, but later than all rows, whatever the clock says."""
        newest = self.query(f'SELECT max("{column}") FROM delta."{table}"').item()  # noqa: S608  (names of schema.sql)
        now = datetime.now(UTC)
        return now if newest is None else max(now, newest + timedelta(microseconds=1))

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Where what is stored can't be read: one line that names the table and the file."""
        try:
            yield
        except duckdb.Error as error:
            if (damage := self.damage_of(error)) is not None:
                raise damage from error
            raise

    def damage_of(self, error: Exception) -> StoreDamaged | None:
        """What damage of the store an error comes from, if it does."""
        if found := _DAMAGED.search(str(error)):
            return StoreDamaged(*found.groups())
        # Damaged logs say so themselves, in the views. Not every error names its file.
        files = [each for table in schemas() for each in self.damages(table) if each.part != LOG]
        return next((each for each in files if each.part in str(error)), next(iter(files), None))

    def damages(self, table: str) -> Iterator[StoreDamaged]:
        """What of a table can't be read: its log, or files, which are read whole."""
        try:
            files = self.files(table)
        except StoreDamaged as damage:
            yield damage
            return
        for file in files:
            if why := _unreadable(Path(file)):
                yield StoreDamaged(table, self.within(table, file).as_posix(), why)

    def _place(self, table: str) -> Path:
        if table not in schemas():
            raise KeyError(f"{table}: not a table of schema.sql")
        return self.root / "tables" / table

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Held by one process at a time; the kernel takes it from one that is killed."""
        return self._lock(name)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        with _disk_errors("locks"):
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _commit(self, table: str, frame: pl.DataFrame, replaced: Mapping[str, str] | None) -> None:
        """Add rows, or put them in place of those with these values. The commit itself says what it wrote, so that no crash comes
        between the two.
        """
        from deltalake import CommitProperties, write_deltalake

        place, data = self._place(table), arrow_rows(table, frame)
        partition_by = list(PARTITIONED_BY.get(table, ())) or None
        mode = "append" if replaced is None else "overwrite"
        predicate = " AND ".join(f"{name} = {_literal(value)}" for name, value in (replaced or {}).items()) or None
        written = contents_of(data, RECORDED_BY.get(table, ()))
        told = json.dumps({"replaced": replaced, "written": as_json(written)})

        def write() -> None:
            place.mkdir(parents=True, exist_ok=True)
            properties = CommitProperties(custom_metadata={_CONTENTS: told})
            how: dict[str, Any] = {"mode": mode, "predicate": predicate, "partition_by": partition_by}
            write_deltalake(str(place), data, commit_properties=properties, **how)

        with self._damage_before_disk(table):
            _retried(write, table)

    @contextmanager
    def _damage_before_disk(self, table: str) -> Iterator[None]:
        """A table that can't be written because it can't be read is no full disk."""
        try:
            yield
        except DiskRefused as refused:
            known = refused.is_of_disk or not self._place(table).is_dir()
            raise (refused if known else next(self._changed_files(table), refused)) from refused

    def _changed_files(self, table: str) -> Iterator[StoreDamaged]:
        """What of a table can't be read, or has another size than its log says, so that Delta can't read it."""
        from deltalake import DeltaTable

        yield from self.damages(table)
        added = pl.DataFrame(DeltaTable(str(self._place(table))).get_add_actions(flatten=True))
        for name, size in added.select("path", "size_bytes").iter_rows():
            if (self._place(table) / unquote(name)).stat().st_size != size:
                yield StoreDamaged(table, name, "has another size than the table's log says")

    def _compact(self, table: str) -> None:
        """Merge small files. Old ones stay on disk for running queries until Delta's retention lets them go."""
        from deltalake import DeltaTable

        with self._damage_before_disk(table):
            _retried(lambda: DeltaTable(str(self._place(table))).optimize.compact(), table)


@lru_cache(maxsize=8)
def _pool_answer(
    store: Store, sql: str, parameters: tuple[tuple[str, str | int | None], ...], *_files: tuple[str, ...]
) -> pl.DataFrame:
    return store.query(sql, dict(parameters))


def _read_log(place: Path) -> Snapshot:
    """The table at `place` as its log has it; no files where no table is."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        if not DeltaTable.is_deltatable(str(place)):
            if any(place.rglob("*.parquet")):
                raise StoreDamaged(place.name, LOG, "is not there, though files of rows are")
            return Snapshot()
        table = DeltaTable(str(place))
        files = tuple(sorted(unquote(uri.removeprefix("file://")) for uri in table.file_uris()))
        table_id, version = str(table.metadata().id), table.version()
    except (DeltaError, OSError, ValueError) as error:
        raise StoreDamaged(place.name, LOG, f"can't be read ({_one_line(error)})") from error
    commit = place / LOG / f"{version:020}.json"
    if commit.exists():  # a log that was cleaned up holds a checkpoint alone
        _live[place] = _Live(commit, commit.stat().st_mtime_ns, files, table_id)
    return Snapshot(table_id, version, files)


def _one_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    return " ".join(plain.split())[:160].replace(";", ",") or type(error).__name__


def _read_commit(path: Path) -> Commit | None:
    try:
        actions = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    info = next((each["commitInfo"] for each in actions if "commitInfo" in each), {})
    files = [change for each in actions for change in (each.get("add"), each.get("remove")) if change]
    told = json.loads(info.get(_CONTENTS, "null"))
    return Commit(
        told and told["replaced"],
        from_json(told["written"]) if told else None,
        keeps_rows=not any(change.get("dataChange", True) for change in files),
        added=tuple(unquote(each["add"]["path"]) for each in actions if "add" in each),
    )


# How views say that a table is damaged, and how DuckDB and we name a file that is.
_DAMAGED = re.compile(r"store table (\w+): (\S+) ([^;]*);")


def _unreadable(path: Path) -> str:
    """Why a Parquet file can't be read to its end; '' when it can."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            for _ in file.iter_batches():
                pass
    except FileNotFoundError:
        return "is gone"
    except (OSError, pa.ArrowException) as error:
        return f"can't be read ({_one_line(error)})"
    return ""


def _make_views(
    con: duckdb.DuckDBPyConnection, files: "Mapping[str, tuple[str, ...] | StoreDamaged]", guarded: bool = False
) -> None:
    """One view per table over its files. Where a table is damaged its view says so to whoever asks for it, and to nobody else."""
    try:
        con.execute("\n".join(_table_view(table, each, guarded) for table, each in files.items()))
    except duckdb.Error:
        for table, each in files.items():
            try:
                con.execute(_table_view(table, each, guarded))
            except duckdb.Error as error:
                why = f"can't be read ({_one_line(error)})"
                listed = () if isinstance(each, StoreDamaged) else each
                part = next((Path(file).name for file in listed if file in str(error)), "a file")
                con.execute(_table_view(table, StoreDamaged(table, part.replace(" ", "_"), why)))


def _table_view(table: str, files: Sequence[str] | StoreDamaged, guarded: bool = False) -> str:
    schema = schemas()[table]
    if isinstance(files, StoreDamaged):
        columns = ", ".join(f'NULL::{_duckdb_type(schema, name)} AS "{name}"' for name in schema.names)
        source = f"(SELECT error({_literal(str(files))}) AS damage) WHERE damage IS NOT NULL"
    elif files:
        # Partition columns live in the directory names; read as text, they are what was written.
        columns = ", ".join(f'"{name}"' for name in schema.names)
        source = f"read_parquet([{_literals(files)}], hive_partitioning = true, hive_types_autocast = false)"
        source += (
            " WHERE (SELECT CASE WHEN is_here THEN true ELSE error(says) END FROM delta.origin)" if guarded else ""
        )
    else:
        columns = ", ".join(f'NULL::{_duckdb_type(schema, name)} AS "{name}"' for name in schema.names)
        source = "(SELECT 1 WHERE false)"
    return f'CREATE OR REPLACE VIEW delta."{table}" AS SELECT {columns} FROM {source};'  # noqa: S608  (names of schema.sql)


def _origin_view(root: Path, path: Path) -> str:
    """Where the published file belongs. A copy of it names the files of the place that it was copied from, and must not read them.

    DuckDB shows a view where the files lie that are attached, not which of them it stands in itself: a mark that only this file and
    its copies hold finds them all.
    """
    says = (
        f"This file was published as {path} and can be read there alone. If its workspace was copied or moved, run "
        "`icon-assets -w WORKSPACE status` on it where it lies now, then open the file again."
    )
    return f"""
        CREATE VIEW delta.origin AS
        SELECT {_literal(str(root))} AS root, {_literal(says)} AS says, NOT EXISTS (
            FROM duckdb_views() v JOIN duckdb_databases() d USING (database_oid)
            WHERE v.schema_name = 'delta' AND v.view_name = 'origin' AND contains(v.sql, {_literal(uuid.uuid4().hex)})
                AND d.path IS DISTINCT FROM {_literal(str(path))}
        ) AS is_here;"""  # noqa: S608  (literals)


def _files_view(live: "Mapping[str, tuple[str, ...] | StoreDamaged]") -> str:
    files = [file for each in live.values() if not isinstance(each, StoreDamaged) for file in each]
    return f"CREATE VIEW delta.files AS SELECT unnest([{_literals(files)}]::VARCHAR[]) AS file;"


def _retried(work: Callable[[], Any], table: str) -> None:
    """Optimistic concurrency: a commit that lost a race is tried again on the new state."""
    from deltalake.exceptions import CommitFailedError

    for attempt in range(_ATTEMPTS):
        try:
            with _disk_errors(f"table {table}"):
                work()
        except CommitFailedError:
            time.sleep(min(0.02 * 2**attempt, 1.0))
        else:
            return
    raise IconError(f"store table {table}: another writer kept changing it; run again: finished work is kept")


@contextmanager
def _disk_errors(part: str) -> Iterator[None]:
    """A disk that refuses: one line that says the mend. A lost race passes through."""
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        with disk_errors(f"store {part}"):
            yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError, duckdb.IOException) as error:
        raise DiskRefused(f"store {part}", error) from error


def _literals(values: Iterable[str]) -> str:
    return ", ".join(map(_literal, values))


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _duckdb_type(schema: "pa.Schema", name: str) -> str:
    names = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN"}
    written = str(schema.field(name).type)
    return "FLOAT[]" if written.startswith("list<") else names.get(written, "TIMESTAMPTZ")
