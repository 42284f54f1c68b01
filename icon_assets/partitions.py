"""Partition definitions, and keeping the shard partitions in step with the pool folder."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from sqlalchemy.exc import IntegrityError

from icon_assets.core.inputs.changes import on_record
from icon_assets.core.inputs.shards import retire_shard, source_files
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace

SHARDS = dg.DynamicPartitionsDefinition(name="shard")


def arm_partitions(workspace: Workspace) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(list(workspace.settings.selection.arms))


def run_partitions(workspace: Workspace) -> dg.MultiPartitionsDefinition:
    """One fine-tuning run: an arm and a seed."""
    seeds = [str(seed) for seed in workspace.settings.training.seeds]
    return dg.MultiPartitionsDefinition(
        {"arm": arm_partitions(workspace), "seed": dg.StaticPartitionsDefinition(seeds)}
    )


def pairwise_partitions(workspace: Workspace) -> dg.MultiPartitionsDefinition:
    """The fine-tuning runs whose answers are compared with those of `evaluation.pairwise.against` with the same
    seed."""
    settings = workspace.settings
    against = settings.evaluation.pairwise.against if settings.evaluation.pairwise else ""
    arms = [arm for arm in settings.selection.arms if arm != against]
    seeds = [str(seed) for seed in settings.training.seeds]
    return dg.MultiPartitionsDefinition(
        {"arm": dg.StaticPartitionsDefinition(arms), "seed": dg.StaticPartitionsDefinition(seeds)}
    )


def sync_shards(instance: dg.DagsterInstance, workspace: Workspace, store: Store) -> list[str]:
    """Make the shard partitions equal to the pool folder: new files get a partition, deleted files lose theirs and
    their rows."""
    wanted = [source.shard for source in source_files(workspace)]
    name = SHARDS.name
    assert name is not None
    known = instance.get_dynamic_partitions(name)
    if new := [shard for shard in wanted if shard not in known]:
        _add_partitions(instance, name, new)
    for shard in sorted((set(known) | on_record(store).keys()) - set(wanted)):
        if shard in known:
            instance.delete_dynamic_partition(name, shard)
        retire_shard(store, shard)
    return wanted


def _add_partitions(instance: dg.DagsterInstance, name: str, new: Sequence[str]) -> None:
    try:
        instance.add_dynamic_partitions(name, new)
    except IntegrityError:  # another process added some of them first; on a second call Dagster leaves those out
        instance.add_dynamic_partitions(name, new)


def arm_and_seed(context: dg.AssetExecutionContext) -> tuple[str, int]:
    """The two dimensions of a training run's partition."""
    key: Any = context.partition_key
    return key.keys_by_dimension["arm"], int(key.keys_by_dimension["seed"])
