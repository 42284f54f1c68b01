"""The schemas of the tables that `sql/schema.sql` declares, in the types of Arrow, DuckDB and Delta."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import duckdb
import polars as pl

if TYPE_CHECKING:
    import pyarrow as pa


# Text columns, so that a value read back from a directory name equals the written one.
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
# The columns that group a table's rows when their contents are recorded. Without an entry: one group.
RECORDED_BY: Mapping[str, tuple[str, ...]] = {
    **PARTITIONED_BY,
    "contexts": ("score_key", "origin"),
    "control_scores": ("score_key",),
    "probe_features": ("score_key",),
    "judgements": ("checkpoint_id",),
}
# Delta's types in the notation of schema.sql.
SQL_TYPES = {
    "string": "VARCHAR",
    "long": "BIGINT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "array": "FLOAT[]",
}


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
    return {name: duckdb_type(schemas()[table], name) for name in schemas()[table].names}


@lru_cache
def column_comments() -> dict[tuple[str, str], str]:
    """The comments of `schema.sql` on columns, by table and column."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        rows = con.execute("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL")
        return {(table, column): comment for table, column, comment in rows.fetchall()}


@lru_cache
def view_comments() -> str:
    """The descriptions of `schema.sql`, as comments on the views of the same names."""
    with duckdb.connect() as con:
        con.execute(sql_text("schema.sql"))
        tables = con.execute("SELECT table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL").fetchall()
    columns = column_comments().items()
    return "\n".join(
        [f'COMMENT ON VIEW "{table}" IS {literal(text)};' for table, text in tables]
        + [f'COMMENT ON COLUMN "{table}"."{column}" IS {literal(text)};' for (table, column), text in columns]
    )


def literals(values: Iterable[str]) -> str:
    return ", ".join(map(literal, values))


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def duckdb_type(schema: "pa.Schema", name: str) -> str:
    names = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN"}
    written = str(schema.field(name).type)
    return "FLOAT[]" if written.startswith("list<") else names.get(written, "TIMESTAMPTZ")
