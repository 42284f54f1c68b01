"""Commands that materialize the graph, or say what that would cost."""

import os
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from icon_assets.cli.command import RUN, Json, command
from icon_assets.cli.opening import opened
from icon_assets.cli.printing import print_frame
from icon_assets.core.strict_json import strict_json

if TYPE_CHECKING:
    from icon_assets.settings import Settings
    from icon_assets.workspace import Workspace


@command(RUN, "Show what the next run will score, and its cost.", "icon-assets plan", "icon-assets -w mine plan --json")
def plan(json: Json = False) -> int:
    from icon_assets.progress import plan_lines
    from icon_assets.resources import WorkspaceResource

    plan = WorkspaceResource(root=str(opened().root)).plan()
    print(strict_json(plan.to_json()) if json else "\n".join(plan_lines(plan)))
    return 0


@command(
    RUN,
    "Materialize the assets that are not up to date.",
    "icon-assets -w mine run",
    "icon-assets run --select raw_pool probe_set base_model   # a part of it",
    "icon-assets run --select raw_pool sample_scores --shards new.jsonl",
)
def run(
    select: Annotated[list[str] | None, typer.Option(metavar="ASSET ...", help="Only these assets.")] = None,
    shards: Annotated[list[str] | None, typer.Option(metavar="FILE ...", help="Only these files of the pool.")] = None,
    json: Json = False,
) -> int:
    warnings.filterwarnings("ignore", category=Warning, module="dagster")
    from icon_assets.definitions import build_assets
    from icon_assets.home import open_instance
    from icon_assets.progress import RunDisplay
    from icon_assets.runner import run_stages, stages_of

    workspace = opened()
    assets = build_assets(workspace)
    stages = stages_of(assets, select or [])
    with open_instance(workspace) as instance, RunDisplay(silent=json) as display:
        outcomes = []
        for outcome in run_stages(
            assets, workspace, instance, stages, files=shards or [], asked=select or [], on_start=display.start
        ):
            display.finish(outcome)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.error]
    if json:
        print(strict_json({"failed": len(failed), "runs": [_outcome_json(outcome) for outcome in outcomes]}))
    elif "leaderboard" in stages and not failed:
        _print_results(workspace)
    return 1 if failed else 0


def _outcome_json(outcome: Any) -> dict[str, Any]:
    figures = {name: value for name, value in outcome.metadata.items() if isinstance(value, bool | int | float)}
    return {
        "asset": outcome.asset,
        "partition": outcome.partition,
        "error": outcome.error,
        "warning": outcome.warning,
        **figures,
    }


def _print_results(workspace: "Workspace") -> None:
    from icon_assets.core.evaluation.leaderboard import wide_board
    from icon_assets.core.store.tables import Store

    store = Store(workspace.store_dir)
    print(
        "\nLeaderboard (mean ± spread over seeds; base: before fine-tuning; cost: all of the scoring, one seed's "
        "training)"
    )
    print_frame(wide_board(store.query("FROM leaderboard ORDER BY task, metric, arm")))
    _print_differences(store, workspace.settings)
    command = f"icon-assets -w {os.path.relpath(workspace.root)}"
    best = f"FROM current_scores WHERE control = '{workspace.settings.controls.primary}' ORDER BY rank LIMIT 10"
    print(f"""
Where to look next
  every score             {command} sql "{best}"
  a page to send          {workspace.exports_dir / "report.html"}
  any DuckDB client       {workspace.store_dir / "scores.duckdb"} (read-only)
  assets and lineage      {command} ui, then http://127.0.0.1:3000""")


def _print_differences(store: Any, settings: "Settings") -> None:
    """Differences to the first baseline arm, and the verdict on each arm."""
    import polars as pl

    from icon_assets.core.evaluation.comparison import AGAINST, differences_of, headline, last_look
    from icon_assets.core.evaluation.leaderboard import wide_differences
    from icon_assets.core.evaluation.verdicts import verdicts_of

    differences = differences_of(store)
    for against in [each for each in AGAINST if each in differences["against"].to_list()][:1]:
        n = headline(differences).filter(pl.col("against") == against)["n_comparisons"].max()
        print(
            f"\nDifferences to {against}, {settings.evaluation.confidence:.0%} intervals over items and seeds "
            f"(verdicts: after Holm over {n} comparisons)"
        )
        print_frame(wide_differences(differences, against))
    for arm, sentence in verdicts_of(differences, settings.selection.reference, last_look(store)).items():
        print(f"{arm}: {sentence}")
