"""Group `pool`: source files become samples in canonical form."""

import dagster as dg

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.core.inputs.ingest import ingest, quarantine_frame, sample_frame, shard_row
from icon_assets.core.inputs.shards import in_other_shards, revive_shard, settled, shard_file
from icon_assets.core.planning.recipes import CODE_VERSIONS, raw_pool_recipe
from icon_assets.metadata import OWNERS, column_schema, markdown_table
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource

_LOGGED = 20  # quarantined rows

pool_files = dg.AssetSpec(
    "pool_files",
    partitions_def=SHARDS,
    group_name="pool",
    kinds={"file"},
    owners=OWNERS,
    description="The source files in the pool folder. The sensor `discover_pool` reports new versions.",
)


@dg.asset(
    partitions_def=SHARDS,
    deps=[pool_files],
    group_name="pool",
    kinds={"python", "deltalake"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["raw_pool"],
    metadata=column_schema("samples"),
)
@mendable
def raw_pool(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The samples of one source file: Alpaca, prompt/completion or chat rows in canonical form, with content ids.

    Unusable rows go to `quarantine` with file, row and reason.
    """
    source = shard_file(icon.workspace, context.partition_key)
    settings = icon.settings.pool
    store = icon.store
    file = settled(source, store, settings.settle_seconds)
    if event := kept(context, icon, raw_pool_recipe(source, file.digest, icon.settings)):
        if file.kind != "unchanged":
            revive_shard(store, source.shard, file.mtime_ns)
            store.publish()
        return unchanged(event)
    ingested = ingest(source, settings.max_chars)
    samples = sample_frame(source, ingested)
    quarantine = quarantine_frame(source, ingested)
    store.replace("samples", samples, shard=source.shard)
    store.replace("quarantine", quarantine, shard=source.shard)
    store.replace("shards", shard_row(source, ingested), shard=source.shard)
    for row in quarantine.head(_LOGGED).iter_rows(named=True):
        context.log.warning(f"{row['file']}:{row['row']}: quarantined, {row['reason']}: {row['detail']}")
    if quarantine.height > _LOGGED:  # an event costs milliseconds, and a file may hold a million bad rows
        context.log.warning(f"{source.file}: {quarantine.height - _LOGGED:,} more are in the table `quarantine`")
    ids = [located.sample.sample_id for located in ingested.samples]
    recipe = raw_pool_recipe(source, ingested.digest, icon.settings)
    return finish(
        context,
        store,
        recipe,
        ingested.content_digest,
        {
            "file": source.file,
            "samples": len(ids),
            "unique_samples": len(set(ids)),
            "also_in_other_shards": in_other_shards(store, source.shard, ids),
            "quarantined": len(ingested.quarantine),
        },
        {
            "dagster/row_count": samples.height,
            "quarantined_rows": markdown_table(quarantine.select("row", "reason", "detail").head(20)),
        },
    )
