"""The code location: `build_defs` puts assets, checks, jobs and resources together. No logic, and nothing heavy is
imported."""

import dagster as dg

from icon_assets.assets.evaluation import evaluation_assets
from icon_assets.assets.features import probe_features, sample_features
from icon_assets.assets.model import base_model
from icon_assets.assets.pairwise import pairwise_assets
from icon_assets.assets.pool import pool_files, raw_pool
from icon_assets.assets.probes import probe_files, probe_set
from icon_assets.assets.scoring import probe_baseline, sample_scores
from icon_assets.assets.selection import selection_assets
from icon_assets.assets.selector import predicted_scores, selector
from icon_assets.assets.training import training_assets
from icon_assets.automation import automated, build_automation
from icon_assets.checks import build_checks, build_freshness_check
from icon_assets.core.evaluation.pairwise import check_pairwise
from icon_assets.core.selection.arm import check_arms
from icon_assets.jobs import build_jobs
from icon_assets.resources import WorkspaceResource
from icon_assets.sensors import build_sensors
from icon_assets.workspace import Workspace


def build_defs(workspace: Workspace | None = None) -> dg.Definitions:
    """All definitions of a workspace (default: that of `ICON_WORKSPACE`).

    Raises:
        IconError: the workspace's settings are missing or wrong.
    """
    workspace = workspace or Workspace.load()
    assets = build_assets(workspace)
    jobs = build_jobs(workspace, assets)
    launchers, schedules = build_automation(workspace, jobs)
    return dg.Definitions(
        assets=[pool_files, probe_files, *assets],
        asset_checks=[*build_checks(assets), build_freshness_check()],
        jobs=jobs,
        sensors=[*build_sensors(workspace), *launchers],
        schedules=schedules,
        resources={"icon": WorkspaceResource(root=str(workspace.root))},
    )


def build_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Every asset of the graph, each after its inputs. Arms and seeds of the settings are partitions.

    Raises:
        IconError: an arm of the settings that does not exist, or whose control is not computed.
    """
    check_arms(workspace.settings.selection, workspace.settings.controls.kinds)
    check_pairwise(workspace.settings)
    selection = selection_assets(workspace)
    training = training_assets(workspace, selection[0])
    base_eval, eval_results, leaderboard, report = evaluation_assets(workspace, training[0])
    compared = pairwise_assets(workspace, training[0])
    evaluation = [base_eval, eval_results, *compared, leaderboard, report]  # in the order in which a run makes them
    scoring = [raw_pool, probe_set, base_model, probe_baseline, sample_scores]
    selecting = [sample_features, probe_features, selector, predicted_scores]
    return automated([*scoring, *selecting, *selection, *training, *evaluation], workspace)


defs = build_defs()
