"""Who starts work when nobody is there: exactly one launcher, by `automation.scoring` of the settings.

`nightly`: a schedule that runs the stages in order in one process. `on_change`: conditions on the assets, which one
sensor evaluates. The two never run together, so that nothing is started twice.

`on_change` starts one run per stale shard. Dagster could take several into one (`BackfillPolicy`), and we do not let it: such a run
names its first and last partition only, so that shards that lie apart still need a run each, and either of them deleted before it
starts fails all; it stamps one data version on every shard, after whatever the asset logged for each, so that shards
that came out the same look changed; and check results in it belong to no partition. Where many files change at a time,
`nightly` with a `cron` of every few minutes does in one process what is stale, each shard with its own verdict.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.selection import ON_DEMAND, draws, needed_assets
from icon_assets.jobs import NIGHTLY
from icon_assets.launched import UNFINISHED
from icon_assets.settings import Settings, Workspace

_TRAINING = {"checkpoint", "base_eval", "eval_results", "answers", "pairwise_results", "leaderboard", "report"}
_LOAD_ONLY = {"commit_seconds", "tokens_per_forward"}  # they change how fast, not what

_COMPARISON = {"bootstrap_draws", "confidence", "pairwise"}  # they change what is made of results, not the results


def _scoring(settings: Settings) -> dict[str, Any]:
    """What of `scoring` decides a pair; who is scored at all comes in `_drawn`."""
    return settings.scoring.model_dump(exclude={*_LOAD_ONLY, "direct_share"})


def _drawn(settings: Settings) -> list[float]:
    share = settings.scoring.direct_share
    return [share] if share < 1 else []


# What of the settings each asset is made with. It becomes part of the code version, so that a changed setting shows in
# the UI and starts what is stale.
_MADE_WITH: Mapping[str, Callable[[Settings], Any]] = {
    "raw_pool": lambda s: s.pool.max_chars,
    "probe_set": lambda s: [s.probes.model_dump(), s.evaluation.held_out, [t.path for t in s.evaluation.multiple_choice]],
    "base_model": lambda s: s.model.model_dump(),
    "probe_baseline": _scoring,
    "sample_scores": lambda s: [
        _scoring(s), s.controls.model_dump(), s.probes.budget, s.probes.exact_pairs, s.probes.error_rate, *_drawn(s),
    ],
    "sample_features": _scoring,
    "probe_features": _scoring,
    "selector": lambda s: [s.selector.model_dump(), s.controls.primary],
    "selected_subset": lambda s: [
        s.selection.model_dump(exclude={"arms", "length_warning"}), [draws(arm, s.training.seeds) for arm in s.selection.arms],
    ],
    "selection_trust": lambda s: [s.selection.model_dump(exclude={"length_warning"}), s.controls.model_dump(), s.probes.near_duplicate],
    "checkpoint": lambda s: s.training.recipe,
    "eval_results": lambda s: s.evaluation.model_dump(exclude=_COMPARISON),
    "base_eval": lambda s: s.evaluation.model_dump(exclude=_COMPARISON),
    "answers": lambda s: [_pairwise(s, "prompts", "max_new_tokens", "limit"), s.training.template],
    "pairwise_results": lambda s: [_pairwise(s, "against", "judge"), s.evaluation.confidence],
    "leaderboard": lambda s: [s.evaluation.bootstrap_draws, s.evaluation.confidence],
}  # fmt: skip


def _pairwise(settings: Settings, *keys: str) -> Any:
    pairwise = settings.evaluation.pairwise
    return pairwise.model_dump(mode="json", include=set(keys)) if pairwise else None


def automated(assets: list[dg.AssetsDefinition], settings: Settings) -> list[dg.AssetsDefinition]:
    """The assets with their settings in the code version and, where conditions start them, with their condition."""
    return [asset.map_asset_specs(lambda spec: _automated(spec, settings)) for asset in assets]


def _automated(spec: dg.AssetSpec, settings: Settings) -> dg.AssetSpec:
    name = spec.key.to_user_string()
    if name in _MADE_WITH:
        spec = spec.replace_attributes(code_version=f"{spec.code_version}-{digest(_MADE_WITH[name](settings))[:8]}")
    wanted = name not in ON_DEMAND or name in needed_assets(settings.selection)
    starts = (
        settings.automation.scoring == "on_change" and (settings.automation.train or name not in _TRAINING) and wanted
    )
    needs_input = name not in {"raw_pool", "base_model"}
    return spec.replace_attributes(automation_condition=stale_condition(needs_input)) if starts else spec


def stale_condition(needs_input: bool) -> dg.AutomationCondition:
    """Something it is made from has changed, and everything it is made from is there and settled.

    An input that was made again and came out the same starts nothing. A partition that failed is not asked for again
    until something changes (the daemon retries its run a few times), and holds up no other partition.

    Args:
        needs_input: whether it is made from other assets, so that there is nothing to do before the first of their partitions.
    """
    condition = dg.AutomationCondition
    # Not `any_deps_updated`: that is true already when an input will be made again, changed or not.
    upstream = condition.any_deps_match(condition.data_version_changed())
    handled = condition.newly_requested() | condition.initial_evaluation()
    # What is missing when automation is switched on is asked for, too: hence no `initial_evaluation` there.
    pending = (upstream | condition.code_version_changed()).since(handled) | condition.newly_missing().since(
        condition.newly_requested()
    )
    # Files are not made by anybody: they are there, or nothing depends on them.
    files = dg.AssetSelection.assets("pool_files", "probe_files")
    ready = ~condition.any_deps_missing().ignore(files)
    if needs_input:
        ready &= condition.any_deps_match(~condition.missing()).ignore(files)
    unsettled = condition.any_deps_in_progress() | condition.any_deps_match(condition.will_be_requested())
    return (pending & ready & ~unsettled & ~condition.in_progress()).with_label("stale")


def build_automation(
    workspace: Workspace, jobs: list[dg.JobDefinition]
) -> tuple[list[dg.SensorDefinition], list[dg.ScheduleDefinition]]:
    """The one launcher that the settings name; it runs as soon as Dagster's daemon does.

    Raises:
        IconError: `automation.cron` can't be read.
    """
    settings = workspace.settings.automation
    if settings.scoring == "on_change":
        sensor = dg.AutomationConditionSensorDefinition(
            "changes", target="*", default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=30,
            description="Starts what is stale, by the conditions of the assets.",
        )  # fmt: skip
        return [sensor], []
    return [], [_nightly(workspace, next(job for job in jobs if job.name == NIGHTLY))]


def _nightly(workspace: Workspace, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    settings, running = workspace.settings.automation, dg.DefaultScheduleStatus

    def start(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        unfinished = dg.RunsFilter(job_name=NIGHTLY, statuses=UNFINISHED)
        if runs := context.instance.get_runs(unfinished, limit=1):
            return dg.SkipReason(f"run {runs[0].run_id} of the last time is not finished")
        return dg.RunRequest()

    try:
        return dg.ScheduleDefinition(
            name=NIGHTLY, job=job, cron_schedule=settings.cron, execution_timezone=settings.time_zone,
            execution_fn=start, description="Scores what changed since the last night, and selects.",
            default_status=running.RUNNING if settings.scoring == "nightly" else running.STOPPED,
        )  # fmt: skip
    except dg.DagsterInvalidDefinitionError as error:
        raise IconError(
            f"{workspace.root / 'settings.yaml'}: automation.cron: {settings.cron!r} is no cron expression, such as '0 2 * * *'"
        ) from error
