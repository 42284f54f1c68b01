"""Running the graph stage by stage in this process: each partition is a Dagster run of its own, in dependency order.

A partition that fails does not stop its neighbours; what needs all of them says what is missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from icon_assets.core.errors import IconError
from icon_assets.partitions import arm_partitions, run_partitions, sync_shards
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import Workspace

PARENT_TAG = "icon/parent_run"
STAGES = (
    "raw_pool", "probe_set", "base_model", "probe_baseline", "sample_scores", "selected_subset",
    "checkpoint", "base_eval", "eval_results", "leaderboard",
)  # fmt: skip
SCORING_STAGES = STAGES[: STAGES.index("selected_subset")]


@dataclass(frozen=True)
class Outcome:
    """How one run of one asset's partition ended. `metadata` is what the asset reported; `error` is one line."""

    asset: str
    partition: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.asset}[{self.partition}]" if self.partition else self.asset


def stages_of(select: Sequence[str]) -> tuple[str, ...]:
    """The stages to run: all, or the named ones in dependency order.

    Raises:
        IconError: a name that is no asset.
    """
    if unknown := sorted(set(select) - set(STAGES)):
        raise IconError(f"{unknown[0]}: no such asset; known are {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if not select or stage in select)


def run_stages(
    assets: Sequence[dg.AssetsDefinition],
    workspace: Workspace,
    instance: dg.DagsterInstance,
    stages: Sequence[str],
    *,
    on_start: Callable[[str, str], None] = lambda asset, partition: None,
    tags: Mapping[str, str] | None = None,
    console: str = "CRITICAL",
) -> Iterator[Outcome]:
    """Run the stages, yielding each partition's outcome. Shard partitions are first made equal to the pool folder."""
    icon = WorkspaceResource(root=str(workspace.root))
    shards = sync_shards(instance, workspace, icon.store)
    for asset in stages:
        for partition in _partitions(asset, workspace, shards):
            on_start(asset, partition)
            result = dg.materialize(
                list(assets),
                selection=[asset],
                partition_key=partition or None,
                instance=instance,
                resources={"icon": icon},
                raise_on_error=False,
                tags=dict(tags or {}),
                run_config={"loggers": {"console": {"config": {"log_level": console}}}},
            )
            yield _outcome(asset, partition, result)


def _partitions(asset: str, workspace: Workspace, shards: Sequence[str]) -> Sequence[str]:
    if asset in {"raw_pool", "sample_scores"}:
        return shards
    if asset == "selected_subset":
        return arm_partitions(workspace).get_partition_keys()
    if asset in {"checkpoint", "eval_results"}:
        return run_partitions(workspace).get_partition_keys()
    return [""]


def _outcome(asset: str, partition: str, result: dg.ExecuteInProcessResult) -> Outcome:
    if result.success:
        event = result.get_asset_materialization_events()[-1]
        metadata = event.step_materialization_data.materialization.metadata
        return Outcome(asset, partition, {name: value.value for name, value in metadata.items()})
    return Outcome(asset, partition, error=_error_line(result))


def _error_line(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            assert data.error is not None
            cause = data.error.cause or data.error
            return " ".join(cause.message.split())[:400]
    return "the run failed before its step started; see the run in the UI"
