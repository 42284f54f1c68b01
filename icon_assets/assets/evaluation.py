"""Group `evaluation`: metrics of the base model and of every checkpoint, and the comparison of arms."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged, unchanged_and_newest
from icon_assets.assets.model import base_model
from icon_assets.core.digests import digest, file_digest, frame_digest
from icon_assets.core.evaluation import comparison
from icon_assets.core.evaluation.leaderboard import COSTS, wide_board, wide_differences
from icon_assets.core.evaluation.measure import measure
from icon_assets.core.evaluation.metric import Metric, item_rows, result_rows
from icon_assets.core.evaluation.verdicts import verdicts_of
from icon_assets.core.inputs.evaluation_files import target_files
from icon_assets.core.model.fine_tuned import load_fine_tuned
from icon_assets.core.model.loading import load
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.publish.report import write_report
from icon_assets.core.quality import refuse
from icon_assets.core.quality.contents import contents_are_as_recorded
from icon_assets.core.quality.training import files_are_as_recorded
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.training.encode import encode_samples
from icon_assets.metadata import OWNERS, bars, column_schema, intervals, markdown_table, named_list
from icon_assets.partitions import arm_and_seed, run_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace


@dg.asset(
    deps=[base_model],
    group_name="evaluation",
    kinds={"pytorch", "huggingface"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["base_eval"],
    metadata=column_schema("eval_results"),
)
@mendable
def base_eval(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The metrics of the base model before any fine-tuning, the starting point of every arm."""
    store = icon.store
    recipe = icon.recipes.of("base_eval")
    if event := kept(context, icon, recipe):
        return _counted(context, store, recipe, event)
    record, dtype = icon.base_model()
    loaded = load(record.directory, dtype, icon.device())
    metrics = _evaluate(context, icon, loaded.model, loaded.tokenizer)
    return _store_results(context, store, recipe, metrics, f"base-{record.digest}", comparison.BASE, 0)


def evaluation_assets(workspace: Workspace, checkpoint: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of this group that follow checkpoints; their partitions are arms and seeds."""

    @dg.asset(
        partitions_def=run_partitions(workspace),
        deps=[checkpoint],
        group_name="evaluation",
        kinds={"pytorch", "huggingface"},
        owners=OWNERS,
        pool="gpu",
        code_version=CODE_VERSIONS["eval_results"],
        metadata=column_schema("eval_results"),
    )
    @mendable
    def eval_results(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """Multiple-choice accuracy (lm-evaluation-harness) and held-out perplexity of one checkpoint."""
        arm, seed = arm_and_seed(context)
        store = icon.store
        recipes = icon.recipes
        upstream = recipes.needed("checkpoint", f"{arm}|{seed}")
        recipe = recipes.of("eval_results", f"{arm}|{seed}")
        if event := kept(context, icon, recipe):
            return _counted(context, store, recipe, event)
        refuse(icon.workspace, "checkpoint", f"{arm}|{seed}", files_are_as_recorded, contents_are_as_recorded)
        record, dtype = icon.base_model()
        directory = icon.workspace.root / str(upstream.summary["path"])
        model, tokenizer = load_fine_tuned(record.directory, directory, dtype, icon.device())
        metrics = _evaluate(context, icon, model, tokenizer)
        return _store_results(context, store, recipe, metrics, str(upstream.summary["checkpoint_id"]), arm, seed)

    @dg.asset(
        deps=[eval_results, base_eval],
        group_name="evaluation",
        kinds={"duckdb", "polars"},
        owners=OWNERS,
        code_version=CODE_VERSIONS["leaderboard"],
        metadata=column_schema("leaderboard_differences"),
    )
    @mendable
    def leaderboard(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """Comparison of the arms: mean and spread over seeds of every metric, differences with their intervals, a
        verdict per arm, and the cost of each arm. SQL views: `leaderboard` and `leaderboard_differences`."""
        store = icon.store
        settings = icon.settings.evaluation
        recipe = icon.recipes.of("leaderboard")
        if event := kept(context, icon, recipe):
            return unchanged(event)
        target = target_files(settings)
        looks = comparison.looks_at(store, target)
        items = comparison.current_items(store)
        found = comparison.compare(items, draws=settings.bootstrap_draws, confidence=settings.confidence, looks=looks)
        differences = comparison.as_frame(found)
        store.replace("leaderboard_differences", differences)
        board = store.query("FROM leaderboard ORDER BY task, metric, arm")
        verdicts = verdicts_of(differences, icon.settings.selection.reference, looks)
        summary = {
            "arms": board["arm"].n_unique(),
            "metrics": board.select("task", "metric").n_unique(),
            "comparisons": differences.height,
            "verdicts": verdicts,
            "results": store.query("FROM delta.results_now").item(),
            **({"target": target, "looks": looks} if target else {}),
        }
        product = digest([frame_digest(board.drop(*COSTS)), frame_digest(differences)])
        pictures = {**board_metadata(board), **difference_metadata(differences, settings.confidence)}
        return finish(context, store, recipe, product, summary, {**pictures, "verdicts": named_list(verdicts)})

    @dg.asset(
        deps=[leaderboard],
        group_name="evaluation",
        kinds={"html"},
        owners=OWNERS,
        code_version=CODE_VERSIONS["report"],
    )
    @mendable
    def report(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """One self-contained page to send to a colleague: verdict, leaderboard, cost, scores, examples, trust,
        lineage."""
        store = icon.store
        path = icon.workspace.exports_dir / "report.html"
        recipe = icon.recipes.of("report")
        event = ledger.made(store, recipe)
        if event and path.is_file() and file_digest(path) == event.digest:
            return unchanged(event)
        done = write_report(icon.workspace)
        summary = {"bytes": done.n_bytes, "nothing_to_show_for": ", ".join(done.missing)}
        return finish(context, store, recipe, done.digest, summary, {"path": dg.MetadataValue.path(str(done.path))})

    return [base_eval, eval_results, leaderboard, report]


def board_metadata(board: pl.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    """The leaderboard as a table, and one plot per headline metric."""
    pictures: dict[str, dg.MarkdownMetadataValue] = {"leaderboard": markdown_table(wide_board(board))}
    for task, metric in comparison.main_rows(board).select("task", "metric").unique(maintain_order=True).iter_rows():
        rows = board.filter((pl.col("task") == task) & (pl.col("metric") == metric))
        values = {r["arm"]: (r["mean"], r["sd_over_seeds"] or 0.0) for r in rows.iter_rows(named=True)}
        pictures[f"plot_{task}_{metric}".replace("/", "_")] = bars(
            values, f"{task}: {metric}, mean and spread over seeds", metric
        )
    return pictures


def difference_metadata(differences: pl.DataFrame, confidence: float) -> dict[str, dg.MarkdownMetadataValue]:
    """The headline differences: a table per baseline arm, and a plot for the first of them."""
    rows = comparison.headline(differences)
    there = [against for against in comparison.AGAINST if against in rows["against"].to_list()]
    pictures = {f"differences_to_{against}": markdown_table(wide_differences(rows, against)) for against in there}
    for against in there[:1]:
        panels = {}
        for (task, metric), ones in rows.filter(pl.col("against") == against).group_by(
            "task", "metric", maintain_order=True
        ):
            good = "less" if metric in comparison.LESS_IS_BETTER else "more"
            figures = {
                row["arm"]: (row["difference"], row["low"], row["high"], row["verdict"]) for row in ones.to_dicts()
            }
            panels[f"{task} {metric} ({good} is better)"] = figures
        title = f"Difference to {against}, {confidence:.0%} intervals"
        pictures["plot_differences"] = intervals(panels, title)
    return pictures


def _counted(context: dg.AssetExecutionContext, store: Store, recipe: Recipe, event: Event) -> dg.MaterializeResult:
    """Results that are kept."""
    counts = comparison.counts(store, str(event.summary["checkpoint_id"]))
    return unchanged_and_newest(context, store, recipe, event, counts=counts)


def _evaluate(context: dg.AssetExecutionContext, icon: WorkspaceResource, model: Any, tokenizer: Any) -> list[Metric]:
    record, _ = icon.base_model()
    encode = partial(encode_samples, record, settings=icon.settings.training)
    return measure(icon.workspace, model, tokenizer, encode, device=icon.device(), warn=context.log.warning)


def _store_results(
    context: dg.AssetExecutionContext,
    store: Store,
    recipe: Recipe,
    metrics: Sequence[Metric],
    checkpoint_id: str,
    arm: str,
    seed: int,
) -> dg.MaterializeResult:
    frame = result_rows(metrics, checkpoint_id, arm, seed)
    store.replace("eval_items", item_rows(metrics, checkpoint_id), checkpoint_id=checkpoint_id)
    store.replace("eval_results", frame, checkpoint_id=checkpoint_id)
    return finish(
        context,
        store,
        recipe,
        frame_digest(frame),
        {"checkpoint_id": checkpoint_id, "metrics": frame.height},
        {
            "results": markdown_table(frame.select("task", "metric", "value", "stderr")),
            "dagster/row_count": frame.height,
        },
    )
