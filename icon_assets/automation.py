"""What starts work unattended: exactly one launcher, by `automation.scoring` of the settings.

`nightly`: a schedule that runs the stages in order in one process. `on_change`: conditions on the assets, which one
sensor evaluates. It compares each product with its current recipe (`core/planning/recipes.py`), partition by partition.
The two never run together, so that nothing is started twice.

`on_change` starts one run per stale shard. Dagster could combine several shards into one run (`BackfillPolicy`), but
this is not used, for three reasons. Such a run names only its first and last partition, so that shards that are not
adjacent still need separate runs, and deleting one of the two before the start fails the run. It gives all shards the
same data version, so that unchanged shards look changed. Its check results belong to no partition. Where many files
change at a time, `nightly` with a `cron` of every few minutes processes all stale shards in one process, with a verdict
for each shard."""

import json
import time
from collections.abc import Iterable
from functools import lru_cache

import dagster as dg

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.source_files import SourceFile, source_digest
from icon_assets.core.planning.recipes import Recipes, Unready, settings_digest
from icon_assets.core.selection.arm import ON_DEMAND, needed_assets
from icon_assets.core.store.tables import Store
from icon_assets.jobs import NIGHTLY
from icon_assets.launched import UNFINISHED
from icon_assets.runner import TRAINING_GROUPS
from icon_assets.workspace import Workspace

# Made from files whose versions sensors report; all others are only compared with their recipes.
_OF_REPORTED_FILES = {"raw_pool"}


def automated(assets: list[dg.AssetsDefinition], workspace: Workspace) -> list[dg.AssetsDefinition]:
    """The assets with their settings in the code version, so that a changed setting shows in the UI, and, where
    conditions start them, with their condition."""
    return [asset.map_asset_specs(lambda spec: _automated(spec, workspace)) for asset in assets]


def _automated(spec: dg.AssetSpec, workspace: Workspace) -> dg.AssetSpec:
    name = spec.key.to_user_string()
    settings = workspace.settings
    static = isinstance(spec.partitions_def, dg.StaticPartitionsDefinition | dg.MultiPartitionsDefinition)
    parts = spec.partitions_def.get_partition_keys() if static and spec.partitions_def else [""]
    spec = spec.replace_attributes(code_version=f"{spec.code_version}-{settings_digest(name, parts, settings)[:8]}")
    wanted = name not in ON_DEMAND or name in needed_assets(settings.selection)
    follows = settings.automation.train or spec.group_name not in TRAINING_GROUPS
    starts = settings.automation.scoring == "on_change" and follows and wanted
    return spec.replace_attributes(automation_condition=stale_condition(workspace, name)) if starts else spec


def stale_condition(workspace: Workspace, asset: str) -> dg.AutomationCondition:
    """Its recipe has changed, and all its inputs exist and are settled.

    An input that was made again with the same result starts nothing. A failed partition is not requested again until
    something changes (the daemon retries its run a few times), and does not block other partitions.
    """
    condition = dg.AutomationCondition
    changed = NewlyOutdated(str(workspace.root)).since(condition.newly_requested())
    # Products that are missing when automation is switched on are requested, too.
    pending = changed | condition.newly_missing().since(condition.newly_requested())
    if asset in _OF_REPORTED_FILES:
        # Not `any_deps_updated`: that is true already when an input will be made again, changed or not.
        reported = condition.any_deps_match(condition.data_version_changed())
        pending |= reported.since(condition.newly_requested() | condition.initial_evaluation())
    # Files are not made by an asset: they exist, or nothing depends on them.
    files = dg.AssetSelection.assets("pool_files", "probe_files")
    ready = ~condition.any_deps_missing().ignore(files)
    if asset not in {"raw_pool", "base_model"}:  # nothing to do before its inputs have a partition
        ready &= condition.any_deps_match(~condition.missing()).ignore(files)
    unsettled = condition.any_deps_in_progress() | condition.any_deps_match(condition.will_be_requested())
    return (pending & ready & ~unsettled & ~condition.in_progress()).with_label("stale")


class NewlyOutdated(dg.AutomationCondition):
    """The recipe of a partition differs from that at the last tick, and from the one it was made by.

    Its cursor holds the recipes of the partitions that were outdated then. Settings are read at every tick, so that a
    changed setting takes effect before Dagster reloads the definitions."""

    def __init__(self, root: str) -> None:
        self._root = root

    @property
    def name(self) -> str:
        return "newly_outdated"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        whole = context.asset_graph_view.get_full_subset(key=context.key)
        keys = {key.partition_key or "": key for key in whole.expensively_compute_asset_partitions()}
        before = json.loads(context.cursor or "{}")
        now = self._outdated(context, keys)
        news = {keys[part] for part, recipe in now.items() if recipe != before.get(part)}
        subset = context.asset_graph_view.get_asset_subset_from_asset_partitions(context.key, news)
        return dg.AutomationResult(context, subset, cursor=json.dumps(now))

    def _outdated(self, context: dg.AutomationContext, parts: Iterable[str]) -> dict[str, str]:
        recipes = _recipes_at(self._root, context.evaluation_time.timestamp())
        asset = context.key.to_user_string()
        found = {part: recipes.outdated(asset, part)[:8] for part in parts}
        return {part: recipe for part, recipe in found.items() if recipe}


@lru_cache(maxsize=1)
def _recipes_at(root: str, tick: float) -> Recipes:
    """One object for all assets of a tick."""
    workspace = Workspace.load(root)
    settle_seconds = workspace.settings.pool.settle_seconds
    return Recipes(workspace, Store(workspace.store_dir), lambda source: _settled_digest(source, settle_seconds))


def _settled_digest(source: SourceFile, settle_seconds: float) -> str:
    """Digest of a file, which is read only when its size or time changed.

    Raises:
        Unready: it was written to a moment ago, or is gone.
    """
    if source.refused:
        return source_digest(source)
    try:
        status = source.path.stat()
    except FileNotFoundError as error:
        raise Unready(f"{source.path}: is gone") from error
    if time.time() - status.st_mtime < settle_seconds:
        raise Unready(f"{source.path}: is still being written to")
    return _digest_at(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_at(source: SourceFile, n_bytes: int, mtime_ns: int) -> str:
    return source_digest(source)


def build_automation(
    workspace: Workspace, jobs: list[dg.JobDefinition]
) -> tuple[list[dg.SensorDefinition], list[dg.ScheduleDefinition]]:
    """The launcher that the settings name. It runs while Dagster's daemon runs.

    Raises:
        IconError: `automation.cron` can't be read.
    """
    settings = workspace.settings.automation
    if settings.scoring == "on_change":
        sensor = dg.AutomationConditionSensorDefinition(
            "changes",
            target="*",
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=30,
            description="Starts stale partitions, by the conditions of the assets.",
            use_user_code_server=True,
        )
        return [sensor], []
    return [], [_nightly(workspace, next(job for job in jobs if job.name == NIGHTLY))]


def _nightly(workspace: Workspace, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    settings = workspace.settings.automation
    running = dg.DefaultScheduleStatus

    def start(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        unfinished = dg.RunsFilter(job_name=NIGHTLY, statuses=UNFINISHED)
        if runs := context.instance.get_runs(unfinished, limit=1):
            return dg.SkipReason(f"the previous run {runs[0].run_id} is not finished")
        return dg.RunRequest()

    try:
        return dg.ScheduleDefinition(
            name=NIGHTLY,
            job=job,
            cron_schedule=settings.cron,
            execution_timezone=settings.time_zone,
            execution_fn=start,
            description="Scores everything that changed since the last run, and selects.",
            default_status=running.RUNNING if settings.scoring == "nightly" else running.STOPPED,
        )
    except dg.DagsterInvalidDefinitionError as error:
        raise IconError(
            f"{workspace.root / 'settings.yaml'}: automation.cron: {settings.cron!r} is not a cron expression such as "
            "'0 2 * * *'"
        ) from error
