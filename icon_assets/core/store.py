"""The store: Delta tables as the system of record, and `scores.duckdb`, the read-only file of views over them.

Table shapes live in `sql/schema.sql`, views in `sql/views.sql`. Every reader, ours included, goes through the views.
A partition is replaced whole or not at all; readers never block a writer, because published views name files that
are never changed in place.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import polars as pl
from filelock import FileLock

from icon_assets.core.errors import IconError

if TYPE_CHECKING:
    import pyarrow as pa

# Text columns, so that a value read back from a directory name is what was written.
PARTITIONED_BY: Mapping[str, tuple[str, ...]] = {
    "shards": ("shard",),
    "samples": ("shard",),
    "quarantine": ("shard",),
    "pair_scores": ("score_key",),
    "sample_scores": ("shard", "score_key"),
    "predicted_scores": ("shard",),
    "selections": ("arm", "subset_id"),
    "checkpoints": ("checkpoint_id",),
    "checkpoint_samples": ("checkpoint_id",),
    "loss_curves": ("checkpoint_id",),
    "eval_results": ("checkpoint_id",),
}
# Views carry only plain SQL: an older DuckDB reads the file too.
_STORAGE_VERSION = "v1.0.0"
_ATTEMPTS = 40
_COMPACT_FROM_FILES = 64


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


@lru_cache
def _view_comments() -> str:
    """The descriptions of `schema.sql`, as comments on the views of the same names."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        tables = con.execute("SELECT table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL").fetchall()
        columns = con.execute(
            "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL"
        ).fetchall()
    return "\n".join(
        [f'COMMENT ON VIEW "{table}" IS {_literal(text)};' for table, text in tables]
        + [f'COMMENT ON COLUMN "{table}"."{column}" IS {_literal(text)};' for table, column, text in columns]
    )


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
        predicate = " AND ".join(f"{column} = {_literal(value)}" for column, value in partition.items()) or None
        self._commit(table, frame, mode="overwrite", predicate=predicate)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows; several writers may append at once. Many small files are merged now and then."""
        self._commit(table, frame, mode="append", predicate=None)
        if len(self._files(table)) >= _COMPACT_FROM_FILES:
            self._compact(table)

    def append_new(self, table: str, frame: pl.DataFrame, keys: Sequence[str]) -> int:
        """Add the rows whose `keys` are not in the table yet; returns how many. Two writers never add one row twice."""
        with self._lock(f"{table}.append"):
            fresh = frame.unique(list(keys), keep="first", maintain_order=True)
            if self._files(table):
                condition = " AND ".join(f'f."{key}" IS NOT DISTINCT FROM t."{key}"' for key in keys)
                with self.connect() as con:
                    con.register("fresh", fresh.to_arrow())
                    fresh = con.sql(f'FROM fresh f ANTI JOIN delta."{table}" t ON {condition}').pl()
            if fresh.height:
                self.append(table, fresh)
            return fresh.height

    def connect(self) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB with the views of `views.sql` over the tables as they are now. Close it after use."""
        con = duckdb.connect(config={"python_enable_replacements": False})
        con.execute(self._script())
        return con

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """The result of one SELECT over the tables as they are now, with `$name` parameters."""
        with self.connect() as con:
            return con.sql(sql, params=dict(parameters) if parameters else None).pl()

    def query_published(self, sql: str) -> pl.DataFrame:
        """The result of a user's SQL on the published file: read-only, and confined to this store's files.

        Raises:
            IconError: nothing is published yet, or DuckDB refused the query.
        """
        if not self.path.exists():
            raise IconError(f"{self.path}: nothing is published yet; run `icon-assets run` first")
        try:
            with duckdb.connect(str(self.path), read_only=True, config={"python_enable_replacements": False}) as con:
                con.execute(f"SET allowed_directories = [{_literal(str(self.root))}]")
                con.execute("SET enable_external_access = false; SET lock_configuration = true")
                relation = con.sql(sql)
                return relation.pl() if relation is not None else pl.DataFrame()
        except duckdb.Error as error:
            raise IconError(f"sql: {' '.join(str(error).split())[:400]}") from error

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
                self._write_published(partial)
                partial.chmod(0o444)
                self.path.with_name("scores.duckdb.wal").unlink(missing_ok=True)
                partial.rename(self.path)
            finally:
                partial.unlink(missing_ok=True)
                partial.with_name(partial.name + ".wal").unlink(missing_ok=True)

    def _write_published(self, target: Path) -> None:
        with duckdb.connect() as con:
            con.execute(f"ATTACH {_literal(str(target))} AS published (STORAGE_VERSION {_literal(_STORAGE_VERSION)})")
            con.execute("USE published")
            con.execute(self._script())
            con.execute("USE memory; DETACH published")

    def _script(self) -> str:
        """SQL that makes the schema `delta` (one view per table, over its live files) and the views of the contract."""
        tables = "\n".join(self._table_view(name) for name in schemas())
        return f"CREATE SCHEMA delta;\n{tables}\n{sql_text('views.sql')}\n{_view_comments()}"

    def _table_view(self, table: str) -> str:
        schema = schemas()[table]
        if files := self._files(table):
            # Partition columns live in the directory names; read as text, they are what was written.
            listed = ", ".join(_literal(file) for file in files)
            columns = ", ".join(f'"{name}"' for name in schema.names)
            source = f"read_parquet([{listed}], hive_partitioning = true, hive_types_autocast = false)"
        else:
            columns = ", ".join(f'NULL::{_duckdb_type(schema, name)} AS "{name}"' for name in schema.names)
            source = "(SELECT 1 WHERE false)"
        return f'CREATE VIEW delta."{table}" AS SELECT {columns} FROM {source};'  # noqa: S608  (names of schema.sql)

    def _files(self, table: str) -> list[str]:
        from deltalake import DeltaTable

        place = self._place(table)
        if not DeltaTable.is_deltatable(str(place)):
            return []
        return sorted(unquote(uri.removeprefix("file://")) for uri in DeltaTable(str(place)).file_uris())

    def _place(self, table: str) -> Path:
        if table not in schemas():
            raise KeyError(f"{table}: not a table of schema.sql")
        return self.root / "tables" / table

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

    def _commit(self, table: str, frame: pl.DataFrame, mode: str, predicate: str | None) -> None:
        from deltalake import write_deltalake

        place, data = self._place(table), arrow_rows(table, frame)
        partition_by = list(PARTITIONED_BY.get(table, ())) or None

        def write() -> None:
            place.mkdir(parents=True, exist_ok=True)
            write_deltalake(str(place), data, mode=mode, predicate=predicate, partition_by=partition_by)  # pyright: ignore

        _retried(write, table)

    def _compact(self, table: str) -> None:
        """Merge small files. Old ones stay on disk for running queries until Delta's retention lets them go."""
        from deltalake import DeltaTable

        _retried(lambda: DeltaTable(str(self._place(table))).optimize.compact(), table)


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
        yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError, duckdb.IOException) as error:
        raise IconError(
            f"store {part}: could not be written ({_first_line(error)}); check free space and permissions, "
            "then run again: finished work is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _duckdb_type(schema: "pa.Schema", name: str) -> str:
    names = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN"}
    return names.get(str(schema.field(name).type), "TIMESTAMPTZ")
