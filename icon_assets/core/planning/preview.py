"""The pool as it will be after the next ingest. Plans need the contents of a changed file before they are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import duckdb
import polars as pl

from icon_assets.core.inputs.changes import Found
from icon_assets.core.inputs.ingest import ingest, sample_frame, shard_row
from icon_assets.core.store.schema import arrow_rows, schemas
from icon_assets.core.store.tables import Store
from icon_assets.core.store.views import Views

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Pending:
    """Rows that will replace those of the named shards."""

    rows: "pa.Table"
    shards: Sequence[str]


@dataclass(frozen=True)
class Preview(Store):
    """A store that shows pending rows, by table, as if they were stored. It is read-only, and keeps to the files of its
    first query."""

    pending: Mapping[str, Pending] = field(default_factory=dict)

    def connect(self) -> duckdb.DuckDBPyConnection:
        return self._shown.cursor()

    def query_pool(self, sql: str, **parameters: str | int | None) -> pl.DataFrame:
        return self.query(sql, parameters)

    @cached_property
    def _shown(self) -> duckdb.DuckDBPyConnection:
        con = Views().over(self._live_files())
        for table, pending in self.pending.items():
            con.register("rows", pending.rows)
            con.register("replaced", pl.DataFrame({"shard": list(pending.shards)}).to_arrow())
            con.execute(f"""
                CREATE TABLE delta."{table}_pending" AS FROM rows;
                CREATE TABLE delta."{table}_replaced" AS SELECT shard::VARCHAR AS shard FROM replaced;
                ALTER VIEW delta."{table}" RENAME TO "{table}_stored";
                CREATE VIEW delta."{table}" AS
                    FROM delta."{table}_stored" ANTI JOIN delta."{table}_replaced" USING (shard)
                    UNION ALL FROM delta."{table}_pending";
            """)  # noqa: S608  (names of schema.sql)
        return con


def preview(store: Store, found: Sequence[Found], gone: Sequence[str], max_chars: int) -> Store:
    """The store as it will be with the changed ones among `found` ingested and the shards `gone` taken out of the
    pool."""
    changed = [file for file in found if file.kind in ("new", "changed")]
    if not changed and not gone:
        return store
    left = store.query("FROM delta.shards WHERE shard IN (SELECT unnest($gone::VARCHAR[]))", {"gone": list(gone)})
    samples = list[pl.DataFrame]()
    shards = [left.with_columns(removed_at=datetime.now(UTC))]
    for file in changed:
        ingested = ingest(file.source, max_chars)
        samples.append(sample_frame(file.source, ingested))
        shards.append(shard_row(file.source, ingested))
    names = [file.source.shard for file in changed]
    return Preview(
        store.root,
        {
            "samples": Pending(_rows("samples", samples), names),
            "shards": Pending(_rows("shards", shards), [*names, *gone]),
        },
    )


def _rows(table: str, frames: Sequence[pl.DataFrame]) -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables([schemas()[table].empty_table(), *(arrow_rows(table, frame) for frame in frames)])
