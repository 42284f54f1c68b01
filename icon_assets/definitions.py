"""The code location: `build_defs` puts assets, checks, jobs and resources together. No logic, and nothing heavy is imported."""

import dagster as dg

from icon_assets.assets.evaluation import evaluation_assets
from icon_assets.assets.model import base_model
from icon_assets.assets.pool import raw_pool
from icon_assets.assets.probes import probe_set
from icon_assets.assets.scoring import probe_baseline, sample_scores
from icon_assets.assets.selection import selection_assets
from icon_assets.assets.training import training_assets
from icon_assets.automation import build_jobs
from icon_assets.checks import build_checks
from icon_assets.core.selection import check_arms
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import Workspace


def build_defs(workspace: Workspace | None = None) -> dg.Definitions:
    """All definitions of a workspace (default: the one `ICON_WORKSPACE` names).

    Raises:
        IconError: the workspace's settings are missing or wrong.
    """
    workspace = workspace or Workspace.load()
    assets = build_assets(workspace)
    return dg.Definitions(
        assets=assets,
        asset_checks=build_checks(assets),
        jobs=build_jobs(workspace, assets),
        resources={"icon": WorkspaceResource(root=str(workspace.root))},
    )


def build_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Every asset of the graph; arms and seeds of the settings are partitions.

    Raises:
        IconError: an arm of the settings that does not exist, or whose control is not computed.
    """
    check_arms(workspace.settings.selection.arms, workspace.settings.controls.kinds)
    selection = selection_assets(workspace)
    training = training_assets(workspace, selection[0])
    evaluation = evaluation_assets(workspace, training[0])
    return [
        raw_pool,
        probe_set,
        base_model,
        probe_baseline,
        sample_scores,
        *selection,
        *training,
        *evaluation,
    ]


defs = build_defs()
