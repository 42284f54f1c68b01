"""Group `evaluation`: metrics of the base model and of every checkpoint, and the comparison of arms."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged, unchanged_and_newest
from icon_assets.assets.model import base_model
from icon_assets.core.digests import digest, file_digest, frame_digest
from icon_assets.core.evaluation import comparison
from icon_assets.core.evaluation.harness import choice_metrics
from icon_assets.core.evaluation.held_out import HeldOutSample, held_out_metrics
from icon_assets.core.evaluation.leaderboard import COSTS, wide_board, wide_differences
from icon_assets.core.evaluation.metric import Metric
from icon_assets.core.evaluation.verdicts import verdicts_of
from icon_assets.core.inputs.choice_items import read_choice_items
from icon_assets.core.inputs.ingest import ingest, sample_frame
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.model.fine_tuned import load_fine_tuned
from icon_assets.core.model.loading import load
from icon_assets.core.model.memory import freed_memory_kept
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

_RESULT_COLUMNS = {
    "checkpoint_id": pl.String,
    "arm": pl.String,
    "seed": pl.Int64,
    "task": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "stderr": pl.Float64,
}


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
        found = comparison.compare(
            comparison.current_items(store), draws=settings.bootstrap_draws, confidence=settings.confidence
        )
        differences = comparison.as_frame(found)
        store.replace("leaderboard_differences", differences)
        board = store.query("FROM leaderboard ORDER BY task, metric, arm")
        verdicts = verdicts_of(differences, icon.settings.selection.reference)
        summary = {
            "arms": board["arm"].n_unique(),
            "metrics": board.select("task", "metric").n_unique(),
            "comparisons": differences.height,
            "verdicts": verdicts,
            "results": store.query("FROM delta.results_now").item(),
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
    counting = "SELECT count(*) > 0 FROM current_results WHERE checkpoint_id = $id"
    counts = store.query(counting, {"id": event.summary["checkpoint_id"]}).item()
    return unchanged_and_newest(context, store, recipe, event, counts=counts)


def _evaluate(context: dg.AssetExecutionContext, icon: WorkspaceResource, model: Any, tokenizer: Any) -> list[Metric]:
    workspace = icon.workspace
    settings = icon.settings.evaluation
    tasks = {task.name: read_choice_items(workspace.input_path(task.path)) for task in settings.multiple_choice}
    metrics: list[Metric] = []
    with freed_memory_kept(icon.device()):
        if tasks or settings.tasks:
            metrics += choice_metrics(
                model,
                tokenizer,
                tasks,
                names=settings.tasks,
                limit=settings.limit,
                batch_size=settings.batch_size,
                device=icon.device(),
            )
        if settings.held_out:
            samples = _held_out(context, icon, settings.held_out)
            metrics += held_out_metrics(model, samples, device=icon.device())
    return metrics


def _held_out(context: dg.AssetExecutionContext, icon: WorkspaceResource, name: str) -> list[HeldOutSample]:
    """Held-out samples under the fine-tuning template."""
    workspace = icon.workspace
    source = SourceFile(name, name, workspace.input_path(name))
    ingested = ingest(source, workspace.settings.pool.max_chars)
    for row in ingested.quarantine:
        context.log.warning(f"{name}:{row.row}: left out of the held-out samples: {row.reason}, {row.detail}")
    record, _ = icon.base_model()
    encoded = encode_samples(record, sample_frame(source, ingested), workspace.settings.training)
    return [
        HeldOutSample(located.row, located.stratum("all"), sample)
        for located, sample in zip(ingested.samples, encoded, strict=True)
    ]


def _store_results(
    context: dg.AssetExecutionContext,
    store: Store,
    recipe: Recipe,
    metrics: Sequence[Metric],
    checkpoint_id: str,
    arm: str,
    seed: int,
) -> dg.MaterializeResult:
    named = {"checkpoint_id": checkpoint_id, "arm": arm, "seed": seed}
    rows = [{**named, "task": m.task, "metric": m.metric, "value": m.value, "stderr": m.stderr} for m in metrics]
    frame = pl.DataFrame(rows, _RESULT_COLUMNS)
    store.replace("eval_items", _items(metrics, checkpoint_id), checkpoint_id=checkpoint_id)
    store.replace("eval_results", frame, checkpoint_id=checkpoint_id)
    return finish(
        context,
        store,
        recipe,
        frame_digest(frame),
        {"checkpoint_id": checkpoint_id, "metrics": len(rows)},
        {
            "results": markdown_table(frame.select("task", "metric", "value", "stderr")),
            "dagster/row_count": frame.height,
        },
    )


def _items(metrics: Sequence[Metric], checkpoint_id: str) -> pl.DataFrame:
    rows = [
        (checkpoint_id, metric.task, metric.metric, item.item, item.value, item.weight)
        for metric in metrics
        for item in metric.items
    ]
    columns = ["checkpoint_id", "task", "metric", "item", "value", "weight"]
    kinds = [pl.String, pl.String, pl.String, pl.Int64, pl.Float64, pl.Float64]
    return pl.DataFrame(rows, dict(zip(columns, kinds, strict=True)), orient="row")
