"""Running the graph stage by stage in this process. Each partition is a separate Dagster run, in dependency order.

A failed partition does not stop the others. Assets that need all partitions report the missing ones.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from filelock import FileLock

from icon_assets.assets.lifecycle import unchanged_figures
from icon_assets.checks import build_checks
from icon_assets.core.errors import DiskRefused, IconError, StoreDamaged
from icon_assets.core.inputs.shards import named_shards
from icon_assets.core.quality import is_sound
from icon_assets.core.selection.arm import ON_DEMAND, needed_assets
from icon_assets.core.store.ledger import Event, take_in
from icon_assets.core.store.restoration import forget_missing
from icon_assets.core.store.tables import Store
from icon_assets.core.text import linked, plain, printable
from icon_assets.dead_runs import PROCESS_TAG, process_name, release_dead_runs
from icon_assets.interrupts import heard_interrupts
from icon_assets.partitions import SHARDS, sync_shards
from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace

PARENT_TAG = "icon/parent_run"
TRAINING_GROUPS = frozenset({"training", "evaluation"})


@dataclass(frozen=True)
class Outcome:
    """The result of one run of one asset's partition. `metadata`: as reported by the asset. `error` (also of failed
    checks) and `warning` (of checks that only warn) are one line each."""

    asset: str
    partition: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    warning: str | None = None

    @property
    def name(self) -> str:
        return f"{self.asset}[{self.partition}]" if self.partition else self.asset


def stages_of(assets: Sequence[dg.AssetsDefinition], select: Sequence[str] = ()) -> tuple[str, ...]:
    """The stages to run: all, or the named ones in dependency order.

    Raises:
        IconError: a name that is not an asset.
    """
    stages = [asset.key.to_user_string() for asset in assets]
    if unknown := sorted(set(select) - set(stages)):
        raise IconError(f"{unknown[0]}: no such asset; known are {', '.join(stages)}")
    return tuple(stage for stage in stages if not select or stage in select)


def scoring_stages(assets: Sequence[dg.AssetsDefinition]) -> tuple[str, ...]:
    """The scores and all their inputs."""
    wanted = {dg.AssetKey("sample_scores")}
    for asset in reversed(assets):
        if asset.key in wanted:
            wanted |= set(asset.dependency_keys)
    return tuple(asset.key.to_user_string() for asset in assets if asset.key in wanted)


def stages_before_training(assets: Sequence[dg.AssetsDefinition]) -> tuple[str, ...]:
    """Everything up to the selections."""
    return tuple(a.key.to_user_string() for a in assets if a.group_names_by_key[a.key] not in TRAINING_GROUPS)


def run_stages(
    assets: Sequence[dg.AssetsDefinition],
    workspace: Workspace,
    instance: dg.DagsterInstance,
    stages: Sequence[str] | None = None,
    *,
    files: Sequence[str] = (),
    asked: Sequence[str] = (),
    on_start: Callable[[str, str], None] = lambda asset, partition: None,
    tags: Mapping[str, str] | None = None,
    console: str = "CRITICAL",
) -> Iterator[Outcome]:
    """Run the stages and yield each partition's outcome. Shard partitions are first made equal to the pool folder.

    Args:
        assets: in the order in which they are run, inputs first.
        stages: the assets to run; None for all.
        files: files of the pool whose shards are run; empty for all.
        asked: stages to run even if no arm needs them (see `core/selection/choose.py`).

    Raises:
        IconError: a file that is not in the pool, or a disk error.
        KeyboardInterrupt: SIGINT or SIGTERM arrived.
    """
    run = _Runs(assets, workspace, instance, tags or {}, console)
    with heard_interrupts() as stop_if_interrupted:
        release_dead_runs(instance)
        store = Store(workspace.store_dir)
        forget_missing(store, "")
        take_in(store, "")
        shards = named_shards(workspace, files, sync_shards(instance, workspace, store))
        store.publish()  # shards that left the pool, and what a killed run had stored last
        idle = set(ON_DEMAND) - needed_assets(workspace.settings.selection) - set(asked)
        for definition in assets:
            asset = definition.key.to_user_string()
            if asset in idle or (stages is not None and asset not in stages):
                continue
            icon = WorkspaceResource(root=str(workspace.root))
            current = _current(icon, definition)
            for partition in _partitions(definition, shards):
                stop_if_interrupted()
                # No run for what would find nothing to do: each takes a second or more.
                if partition in current and is_sound(icon.workspace, asset, partition):
                    yield Outcome(asset, partition, unchanged_figures(current[partition]))
                    continue
                on_start(asset, partition)
                result = run(definition, partition)
                stop_if_interrupted()
                if not result.success:
                    store.publish()  # what was stored before it failed
                    _end_if_disk_refused(result)
                yield _outcome(asset, partition, result)


class _Runs:
    """Dagster runs in this process: one asset, one partition each."""

    def __init__(
        self,
        assets: Sequence[dg.AssetsDefinition],
        workspace: Workspace,
        instance: dg.DagsterInstance,
        tags: Mapping[str, str],
        console: str,
    ) -> None:
        # The job that the UI itself launches assets with, so that runs show their asset there.
        icon = WorkspaceResource(root=str(workspace.root))
        defs = dg.Definitions(assets=assets, asset_checks=build_checks(assets), resources={"icon": icon})
        process = psutil.Process()
        self._job = defs.resolve_implicit_global_asset_job_def()
        self._instance = instance
        self._tags = {PROCESS_TAG: process_name(process.pid, process.create_time()), **tags}
        self._config = {"loggers": {"console": {"config": {"log_level": console}}}}

    def __call__(self, asset: dg.AssetsDefinition, partition: str) -> dg.ExecuteInProcessResult:
        with _turn(self._instance, asset.op.pool):
            return self._job.execute_in_process(
                asset_selection=[asset.key],
                partition_key=partition or None,
                instance=self._instance,
                raise_on_error=False,
                tags=self._tags,
                run_config=self._config,
            )


def _current(icon: WorkspaceResource, definition: dg.AssetsDefinition) -> Mapping[str, Event]:
    """Shards that are up to date; none if a table needed to know is damaged, and their runs report it."""
    if definition.partitions_def != SHARDS:
        return {}
    try:
        return icon.recipes.current(definition.key.to_user_string())
    except StoreDamaged:
        return {}


@contextmanager
def _turn(instance: dg.DagsterInstance, pool: str | None) -> Iterator[None]:
    """Wait here until the pool has a free slot. Inside a run, Dagster would wait with a core at full load and without
    reacting to signals.

    The lock lets one process start at a time. The kernel releases it when a process is killed.
    """
    if pool is None:
        yield
        return
    with FileLock(Path(instance.root_directory) / f"{pool}.lock", poll_interval=0.2):
        while _is_full(instance, pool):
            time.sleep(1)
            release_dead_runs(instance)
        yield


def _is_full(instance: dg.DagsterInstance, pool: str) -> bool:
    slots = instance.event_log_storage.get_concurrency_info(pool)
    return slots.limit is not None and slots.active_slot_count >= slots.limit


def _partitions(asset: dg.AssetsDefinition, shards: Sequence[str]) -> Sequence[str]:
    if asset.partitions_def is None:
        return [""]
    return shards if asset.partitions_def == SHARDS else asset.partitions_def.get_partition_keys()


def _outcome(asset: str, partition: str, result: dg.ExecuteInProcessResult) -> Outcome:
    metadata = {}
    for event in result.get_asset_materialization_events():
        reported = event.step_materialization_data.materialization.metadata
        metadata = {name: value.value for name, value in reported.items()}
    error = _failed_checks(result, dg.AssetCheckSeverity.ERROR) or (None if result.success else _error_line(result))
    return Outcome(asset, partition, metadata, error, _failed_checks(result, dg.AssetCheckSeverity.WARN))


def _failed_checks(result: dg.ExecuteInProcessResult, severity: dg.AssetCheckSeverity) -> str | None:
    failed = [e for e in result.get_asset_check_evaluations() if not e.passed and e.severity == severity]
    return ". ".join(f"check {e.check_name}: {plain(e.description or '')}" for e in failed) or None


def _end_if_disk_refused(result: dg.ExecuteInProcessResult) -> None:
    """If one partition can't be written, neither can the others: raise one error for all of them."""
    for event in result.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        if error and error.cause and error.cause.cls_name == DiskRefused.__name__:
            raise IconError(_error_line(result))


def _error_line(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return linked(data.user_failure_data.description)
            assert data.error is not None
            cause = data.error.cause or data.error
            return printable(" ".join(cause.message.split())[:400])
    return "the run failed before its step started; see the run in the UI"
