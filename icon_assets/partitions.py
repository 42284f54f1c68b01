"""Partition definitions, and keeping the shard partitions in step with the pool folder."""

import dagster as dg

from icon_assets.core.ingest import SourceFile, discover
from icon_assets.core.store import Store
from icon_assets.settings import Workspace

SHARDS = dg.DynamicPartitionsDefinition(name="shard")


def arm_partitions(workspace: Workspace) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(list(workspace.settings.selection.arms))


def run_partitions(workspace: Workspace) -> dg.MultiPartitionsDefinition:
    """One fine-tuning run: an arm and a seed."""
    seeds = [str(seed) for seed in workspace.settings.training.seeds]
    return dg.MultiPartitionsDefinition(
        {"arm": arm_partitions(workspace), "seed": dg.StaticPartitionsDefinition(seeds)}
    )


def source_files(workspace: Workspace) -> list[SourceFile]:
    """The pool's source files as they are on disk now."""
    return discover(workspace.input_path(workspace.settings.pool.path))


def sync_shards(instance: dg.DagsterInstance, workspace: Workspace, store: Store) -> list[str]:
    """Make the shard partitions equal to the pool folder: new files get one, vanished files lose theirs and their rows."""
    wanted = [source.shard for source in source_files(workspace)]
    name = SHARDS.name
    assert name is not None
    known = instance.get_dynamic_partitions(name)
    if new := [shard for shard in wanted if shard not in known]:
        instance.add_dynamic_partitions(name, new)
    for shard in sorted({*known, *_stored_shards(store)} - set(wanted)):
        if shard in known:
            instance.delete_dynamic_partition(name, shard)
        retire_shard(store, shard)
    return wanted


_OF_SHARDS = ("sample_scores", "samples", "quarantine", "shards")


def _stored_shards(store: Store) -> list[str]:
    """Every shard that has rows; one that was killed on its way in or out may have them in some tables only."""
    return store.query(" UNION ".join(f'SELECT shard FROM delta."{table}"' for table in _OF_SHARDS))["shard"].to_list()  # noqa: S608


def retire_shard(store: Store, shard: str) -> None:
    """Take a shard out of the current views. Pairs, subsets, manifests and the ledger keep what was made from it."""
    for table in _OF_SHARDS:
        rows = store.query(f'SELECT * FROM delta."{table}" WHERE shard = $shard', {"shard": shard})  # noqa: S608
        if rows.height:
            store.replace(table, rows.clear(), shard=shard)
