"""Jobs that a person or a schedule starts as a unit."""

import dagster as dg

from icon_assets.assets.lifecycle import guard
from icon_assets.core.text import unlinked
from icon_assets.runner import PARENT_TAG, run_stages, scoring_stages, stages_before_training, stages_of
from icon_assets.workspace import Workspace

NIGHTLY = "nightly"


def build_jobs(workspace: Workspace, assets: list[dg.AssetsDefinition]) -> list[dg.JobDefinition]:
    """Jobs over the stages in their order (shards are discovered first): an asset job can't mix partitions."""
    every = stages_of(assets)
    trains = workspace.settings.automation.train
    nightly = every if trains else stages_before_training(assets)
    return [
        _stages_job(
            NIGHTLY,
            "What the schedule starts: score changed shards, select" + (", train, evaluate." if trains else "."),
            nightly,
            workspace,
            assets,
        ),
        _stages_job(
            "score_pool",
            "Ingest the pool and score everything that is not scored yet.",
            scoring_stages(assets),
            workspace,
            assets,
        ),
        _stages_job(
            "whole_graph",
            "Everything from the pool to the leaderboard; unchanged products are kept.",
            every,
            workspace,
            assets,
        ),
    ]


def _stages_job(
    name: str,
    description: str,
    stages: tuple[str, ...],
    workspace: Workspace,
    assets: list[dg.AssetsDefinition],
) -> dg.JobDefinition:
    @dg.op(name=f"{name}_stages", description=description)
    def run_all(context: dg.OpExecutionContext) -> None:
        guard(context.log)
        failed = []
        for outcome in run_stages(assets, workspace, context.instance, stages, tags={PARENT_TAG: context.run_id}):
            if outcome.error:
                failed.append(outcome)
                context.log.error(f"{outcome.name}: {outcome.error}")
            else:
                context.log.info(f"{outcome.name}: {'made' if outcome.metadata.get('changed') else 'unchanged'}")
            if outcome.warning:
                context.log.warning(f"{outcome.name}: {outcome.warning}")
        if failed:
            names = ", ".join(outcome.name for outcome in failed[:5])
            line = f"{len(failed)} of the runs failed: {names}; first: {failed[0].error}"
            raise dg.Failure(unlinked(line), allow_retries=False)

    @dg.job(name=name, description=description)
    def stages_job() -> None:
        run_all()

    return stages_job
