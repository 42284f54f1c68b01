"""Discovery: sensors that keep shards and versions up to date with the files of the workspace. They start no work
themselves."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile

import dagster as dg

from icon_assets.assets.pool import pool_files
from icon_assets.assets.probes import probe_files
from icon_assets.checks import FRESHNESS, freshness
from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.inputs.changes import Found, Known, compare, on_record
from icon_assets.core.inputs.evaluation_files import probe_inputs
from icon_assets.core.inputs.shards import retire_shard, source_files
from icon_assets.core.store.tables import Store
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace

VERSION_TAG = "dagster/data_version"
# Versions are reported as materializations: conditions do not see observations of assets that Dagster can't observe
# itself. a tick has 60 s, and Dagster needs 25 ms to write each report down
_TICK_SECONDS = 20.0
_TICK_REPORTS = 400
Tick = Callable[[dg.SensorEvaluationContext, WorkspaceResource], dg.SensorResult]
PartitionRequest = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest


def build_sensors(workspace: Workspace) -> list[dg.SensorDefinition]:
    """Discovery of the pool's files, of the probes' files, and a report of both. They are separate, so that a fault
    stops only one."""
    return [
        _sensor(
            "discover_pool",
            workspace,
            _pool_tick,
            "Looks for new, changed and deleted files of the pool. Only files whose size or time changed are read. "
            "Files that are still being written are left for the next tick.",
        ),
        _sensor(
            "discover_probes", workspace, _probes_tick, "Looks for changed files of probes and of evaluation data."
        ),
        _sensor(
            "report_freshness",
            workspace,
            _freshness_tick,
            "Reports how many shards are new, stale or removed, as a check.",
        ),
    ]


def _sensor(name: str, workspace: Workspace, tick: Tick, description: str) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        minimum_interval_seconds=workspace.settings.automation.discover_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )
    def discover(context: dg.SensorEvaluationContext, icon: WorkspaceResource) -> dg.SensorResult | dg.SkipReason:
        try:
            return tick(context, icon)
        except IconError as error:  # a folder that is missing for a while; said in the UI, and tried again
            return dg.SkipReason(str(error))

    return discover


def _pool_tick(context: dg.SensorEvaluationContext, icon: WorkspaceResource) -> dg.SensorResult:
    """Compare the folder with the record, and with earlier reports that are not ingested yet.

    The cursor holds only the latter, so that it is small once everything is ingested. An interrupted tick is repeated.
    Files that do not fit into one tick are left for the next one.
    """
    workspace = icon.workspace
    store = icon.store
    ingested = on_record(store)
    sources = source_files(workspace)
    shards = {source.shard for source in sources}
    waiting = {s: k for s, k in _known(context.cursor).items() if s in shards and ingested.get(s) != k}
    seen = _within_limits(compare(sources, ingested | waiting, workspace.settings.pool.settle_seconds))
    waiting |= {file.source.shard: file.known for file in seen if file.kind in ("new", "changed", "touched")}
    partitions = set(context.instance.get_dynamic_partitions(str(SHARDS.name)))
    whole = [file for file in seen if file.kind != "settling"]
    return dg.SensorResult(
        asset_events=[
            dg.AssetMaterialization(pool_files.key, partition=file.source.shard, tags={VERSION_TAG: file.digest})
            for file in whole
            if file.kind in ("new", "changed") or file.source.shard not in partitions
        ],
        dynamic_partitions_requests=_partition_requests(partitions, store, shards, whole),
        cursor=_cursor(waiting),
    )


def _probes_tick(context: dg.SensorEvaluationContext, icon: WorkspaceResource) -> dg.SensorResult:
    """One version for all files together, because the probe set is drawn from all of them."""
    workspace = icon.workspace
    known = _known(context.cursor)
    sources = [source for _, source in probe_inputs(workspace)]
    seen = list(compare(sources, known, workspace.settings.pool.settle_seconds))
    now = {file.source.shard: file.known for file in seen}
    if any(file.kind == "settling" for file in seen) or now == known:
        return dg.SensorResult(cursor=context.cursor)
    version = digest([[name, file.digest] for name, file in sorted(now.items())])
    report = dg.AssetMaterialization(probe_files.key, tags={VERSION_TAG: version})
    return dg.SensorResult(asset_events=[report], cursor=_cursor(now))


def _freshness_tick(context: dg.SensorEvaluationContext, icon: WorkspaceResource) -> dg.SensorResult:
    """The check `scores_are_current` is reported when its verdict differs from the last one."""
    verdict = freshness(icon)
    if verdict["description"] == context.cursor:
        return dg.SensorResult(cursor=context.cursor)
    evaluation = dg.AssetCheckEvaluation(dg.AssetKey("sample_scores"), FRESHNESS, **verdict)
    return dg.SensorResult(asset_events=[evaluation], cursor=verdict["description"])


def _known(cursor: str | None) -> dict[str, Known]:
    return {name: Known(**known) for name, known in json.loads(cursor or "{}").items()}


def _cursor(files: dict[str, Known]) -> str:
    return json.dumps({name: asdict(known) for name, known in sorted(files.items())})


def _within_limits(files: Iterator[Found]) -> list[Found]:
    deadline = time.monotonic() + _TICK_SECONDS
    reports = 0

    def fits(file: Found) -> bool:
        nonlocal reports
        reports += file.kind in ("new", "changed")
        return reports <= _TICK_REPORTS and time.monotonic() < deadline

    return list(takewhile(fits, files))


def _partition_requests(
    known: set[str], store: Store, shards: set[str], whole: Sequence[Found]
) -> list[PartitionRequest]:
    """Add partitions for complete files. Remove partitions of deleted files, whose rows leave the views."""
    new = sorted({file.source.shard for file in whole} - known)
    gone = sorted((known | on_record(store).keys()) - shards)
    for shard in gone:
        retire_shard(store, shard)
    if gone:
        store.publish()
    requests: list[PartitionRequest] = [SHARDS.build_add_request(new)] if new else []
    if leaving := sorted(known & set(gone)):
        requests.append(SHARDS.build_delete_request(leaving))
    return requests
