"""Group `pool`: source files become samples in canonical form."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from icon_assets.assets.shell import finish, mendable, unchanged
from icon_assets.core import ledger
from icon_assets.core.errors import IconError
from icon_assets.core.ingest import Ingested, SourceFile, ingest, quarantine_frame, sample_frame, source_digest
from icon_assets.core.ledger import Input, Recipe
from icon_assets.core.store import Store
from icon_assets.metadata import OWNERS, column_schema, markdown_table
from icon_assets.partitions import SHARDS, source_files
from icon_assets.resources import WorkspaceResource

CODE_VERSION = "2"
_LOGGED = 20  # quarantined rows


@dg.asset(
    partitions_def=SHARDS, group_name="pool", kinds={"python", "deltalake"}, owners=OWNERS, code_version=CODE_VERSION,
    metadata=column_schema("samples"),
)  # fmt: skip
@mendable
def raw_pool(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The samples of one source file: Alpaca, prompt/completion or chat rows in canonical form, with content ids.

    Rows that can't be used go to `quarantine` with file, row and reason.
    """
    source = _source(icon, context.partition_key)
    settings, store = icon.settings.pool, icon.store
    recipe = Recipe(
        "raw_pool", source.shard, (Input("file", source.file, source_digest(source)),),
        {"max_chars": settings.max_chars}, code_version=CODE_VERSION,
    )  # fmt: skip
    if event := ledger.made(store, recipe):
        return unchanged(event)
    ingested = ingest(source, settings.max_chars)
    samples, quarantine = sample_frame(source, ingested), quarantine_frame(source, ingested)
    store.replace("samples", samples, shard=source.shard)
    store.replace("quarantine", quarantine, shard=source.shard)
    store.replace("shards", _shard_row(source, ingested), shard=source.shard)
    for row in quarantine.head(_LOGGED).iter_rows(named=True):
        context.log.warning(f"{row['file']}:{row['row']}: quarantined, {row['reason']}: {row['detail']}")
    if quarantine.height > _LOGGED:  # an event costs milliseconds, and a file may hold a million bad rows
        context.log.warning(f"{source.file}: {quarantine.height - _LOGGED:,} more are in the table `quarantine`")
    return finish(context, store, recipe, ingested.content_digest, _summary(store, source, ingested), {
        "dagster/row_count": samples.height,
        "quarantined_rows": markdown_table(quarantine.select("row", "reason", "detail").head(20)),
    })  # fmt: skip


def _source(icon: WorkspaceResource, shard: str) -> SourceFile:
    found = {source.shard: source for source in source_files(icon.workspace)}
    if shard not in found:
        raise IconError(f"shard {shard}: its source file is gone; `icon-assets run` takes it out of the pool")
    return found[shard]


def _shard_row(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "shard": source.shard, "file": source.file, "digest": ingested.digest, "n_bytes": ingested.n_bytes,
                "n_samples": len(ingested.samples), "n_quarantined": len(ingested.quarantine),
                "ingested_at": datetime.now(UTC),
            }
        ]
    )  # fmt: skip


def _summary(store: Store, source: SourceFile, ingested: Ingested) -> dict[str, int | str]:
    ids = [located.sample.sample_id for located in ingested.samples]
    elsewhere = store.query(
        "SELECT count(DISTINCT sample_id) AS n FROM samples WHERE shard <> $shard AND sample_id IN (SELECT unnest($ids))",
        {"shard": source.shard, "ids": ids},
    )["n"].item()
    return {
        "file": source.file,
        "samples": len(ids),
        "unique_samples": len(set(ids)),
        "also_in_other_shards": elsewhere,
        "quarantined": len(ingested.quarantine),
    }
