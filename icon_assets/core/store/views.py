"""Views of `sql/views.sql` over the live files of the tables."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import duckdb

from icon_assets.core.errors import StoreDamaged
from icon_assets.core.store.delta import one_line
from icon_assets.core.store.schema import duckdb_type, literal, literals, schemas, sql_text


class Views:
    """A cached in-memory DuckDB with the views over one store's tables. Creating all views takes longer than most
    queries."""

    def __init__(self) -> None:
        # Files are read from the disk cache; a second cache in DuckDB would only grow.
        config: dict[str, Any] = {"python_enable_replacements": False, "enable_external_file_cache": False}
        self._connection = duckdb.connect(config=config)
        self._lock = Lock()
        self._connection.execute("CREATE SCHEMA delta")
        self._files: dict[str, tuple[str, ...] | StoreDamaged] = {}

    def over(self, files: "Mapping[str, tuple[str, ...] | StoreDamaged]") -> duckdb.DuckDBPyConnection:
        """A connection whose views use these files of each table."""
        with self._lock:
            changed = [table for table in files if self._files.get(table) != files[table]]
            make_views(self._connection, {table: files[table] for table in changed})
            if not self._files:
                self._connection.execute(sql_text("views.sql"))
            self._files.update({table: files[table] for table in changed})
            return self._connection.cursor()


@lru_cache
def views_of(root: Path, process: int) -> Views:
    return Views()


def make_views(
    con: duckdb.DuckDBPyConnection, files: "Mapping[str, tuple[str, ...] | StoreDamaged]", guarded: bool = False
) -> None:
    """One view per table over its files. The view of a damaged table raises an error when it is queried; other views
    are not affected."""
    try:
        con.execute("\n".join(_table_view(table, each, guarded) for table, each in files.items()))
    except duckdb.Error:
        for table, each in files.items():
            try:
                con.execute(_table_view(table, each, guarded))
            except duckdb.Error as error:
                why = f"can't be read ({one_line(error)})"
                listed = () if isinstance(each, StoreDamaged) else each
                part = next((Path(file).name for file in listed if file in str(error)), "a file")
                con.execute(_table_view(table, StoreDamaged(table, part.replace(" ", "_"), why)))


def _table_view(table: str, files: Sequence[str] | StoreDamaged, guarded: bool = False) -> str:
    schema = schemas()[table]
    if isinstance(files, StoreDamaged):
        columns = ", ".join(f'NULL::{duckdb_type(schema, name)} AS "{name}"' for name in schema.names)
        source = f"(SELECT error({literal(str(files))}) AS damage) WHERE damage IS NOT NULL"
    elif files:
        # Partition columns are in the directory names; read as text, they keep the written values.
        columns = ", ".join(f'"{name}"' for name in schema.names)
        source = f"read_parquet([{literals(files)}], hive_partitioning = true, hive_types_autocast = false)"
        source += (
            " WHERE (SELECT CASE WHEN is_here THEN true ELSE error(says) END FROM delta.origin)" if guarded else ""
        )
    else:
        columns = ", ".join(f'NULL::{duckdb_type(schema, name)} AS "{name}"' for name in schema.names)
        source = "(SELECT 1 WHERE false)"
    return f'CREATE OR REPLACE VIEW delta."{table}" AS SELECT {columns} FROM {source};'  # noqa: S608  (names of schema.sql)
