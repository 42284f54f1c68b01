"""Group `evaluation`: metrics of the base model and of every checkpoint, and the arms compared."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.model import base_model
from icon_assets.assets.shell import finish, kept, mendable, needed, unchanged
from icon_assets.assets.training import arm_and_seed, encode_samples
from icon_assets.core import ledger
from icon_assets.core.digests import file_digest, frame_digest
from icon_assets.core.evaluation import Metric, choice_metrics, held_out_metrics, read_choice_items
from icon_assets.core.finetuning import load_fine_tuned
from icon_assets.core.ingest import SourceFile, ingest, sample_frame
from icon_assets.core.language_model import load
from icon_assets.core.ledger import Input, Recipe
from icon_assets.core.quality import files_are_as_recorded, refuse
from icon_assets.core.recipes import evaluation_files
from icon_assets.core.report import shown_products, write_report
from icon_assets.core.store import Store
from icon_assets.core.tokens import Encoded
from icon_assets.metadata import OWNERS, bars, column_schema, markdown_table
from icon_assets.partitions import run_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import Workspace

CODE_VERSION = "2"
REPORT_CODE_VERSION = "1"
BASE_ARM = "base"


@dg.asset(
    deps=[base_model], group_name="evaluation", kinds={"pytorch", "huggingface"}, owners=OWNERS, pool="gpu",
    code_version=CODE_VERSION, metadata=column_schema("eval_results"),
)  # fmt: skip
@mendable
def base_eval(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The metrics of the base model before any fine-tuning: what every arm starts from."""
    store, upstream = icon.store, needed(icon.store, "base_model")
    recipe = Recipe(
        "base_eval", "", (upstream.as_input(), *_evaluation_inputs(icon.workspace)), _settings(icon.workspace),
        code_version=CODE_VERSION,
    )  # fmt: skip
    if event := kept(context, icon, recipe):
        return unchanged(event)
    record, dtype = icon.base_model()
    loaded = load(record.directory, dtype, icon.device())
    metrics = _evaluate(icon, loaded.model, loaded.tokenizer)
    return _report(context, store, recipe, metrics, f"base-{record.digest}", BASE_ARM, 0)


def evaluation_assets(workspace: Workspace, checkpoint: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of this group that follow checkpoints; their partitions are arms and seeds."""

    @dg.asset(
        partitions_def=run_partitions(workspace), deps=[checkpoint], group_name="evaluation",
        kinds={"pytorch", "huggingface"}, owners=OWNERS, pool="gpu", code_version=CODE_VERSION,
        metadata=column_schema("eval_results"),
    )  # fmt: skip
    @mendable
    def eval_results(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """Multiple-choice accuracy (lm-evaluation-harness) and held-out perplexity of one checkpoint."""
        arm, seed = arm_and_seed(context)
        store, upstream = icon.store, needed(icon.store, "checkpoint", f"{arm}|{seed}")
        recipe = Recipe(
            "eval_results", f"{arm}|{seed}", (upstream.as_input(), *_evaluation_inputs(icon.workspace)),
            _settings(icon.workspace), code_version=CODE_VERSION,
        )  # fmt: skip
        if event := kept(context, icon, recipe):
            return unchanged(event)
        refuse(icon.workspace, "checkpoint", f"{arm}|{seed}", files_are_as_recorded)
        record, dtype = icon.base_model()
        directory = icon.workspace.root / str(upstream.summary["path"])
        model, tokenizer = load_fine_tuned(record.directory, directory, dtype, icon.device())
        metrics = _evaluate(icon, model, tokenizer)
        return _report(context, store, recipe, metrics, str(upstream.summary["checkpoint_id"]), arm, seed)

    @dg.asset(
        deps=[eval_results, base_eval], group_name="evaluation", kinds={"duckdb", "polars"}, owners=OWNERS,
        code_version=CODE_VERSION,
    )  # fmt: skip
    @mendable
    def leaderboard(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """Arms compared: mean and spread over seeds of every metric, and what each arm cost. The SQL view `leaderboard`."""
        store = icon.store
        upstream = [
            *ledger.latest(store, "eval_results").values(),
            *ledger.latest(store, "base_eval").values(),
        ]
        recipe = Recipe("leaderboard", "", tuple(e.as_input() for e in upstream), code_version=CODE_VERSION)
        board = store.query("FROM leaderboard ORDER BY task, metric, arm")
        summary = {"arms": board["arm"].n_unique(), "metrics": board.select("task", "metric").n_unique()}
        return finish(context, store, recipe, frame_digest(board), summary, board_metadata(board))

    @dg.asset(
        deps=[leaderboard], group_name="evaluation", kinds={"html"}, owners=OWNERS, code_version=REPORT_CODE_VERSION,
    )  # fmt: skip
    @mendable
    def report(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """One self-contained page to send to a colleague: verdict, leaderboard, cost, scores, examples, trust, lineage."""
        store, path = icon.store, icon.workspace.exports_dir / "report.html"
        shown = {"arms": icon.settings.selection.arms, "primary": icon.settings.controls.primary}
        recipe = Recipe("report", "", tuple(shown_products(store)), shown, code_version=REPORT_CODE_VERSION)
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
    for task, metric in board.filter(_HEADLINE).select("task", "metric").unique(maintain_order=True).iter_rows():
        rows = board.filter((pl.col("task") == task) & (pl.col("metric") == metric))
        values = {r["arm"]: (r["mean"], r["sd_over_seeds"] or 0.0) for r in rows.iter_rows(named=True)}
        pictures[f"plot_{task}_{metric}".replace("/", "_")] = bars(
            values, f"{task}: {metric}, mean and spread over seeds", metric
        )
    return pictures


_HEADLINE = ((pl.col("metric") == "acc") & ~pl.col("task").str.contains("/")) | (
    (pl.col("task") == "held_out") & (pl.col("metric") == "perplexity")
)


def wide_board(board: pl.DataFrame) -> pl.DataFrame:
    """One row per arm: `mean ± spread` of the headline metrics, then samples, training and scoring cost."""
    mean, spread = (pl.col(name).round_sig_figs(4).cast(pl.String) for name in ("mean", "sd_over_seeds"))
    cell = pl.when(pl.col("sd_over_seeds").is_null()).then(mean).otherwise(pl.format("{} ± {}", mean, spread))
    table = (
        board.filter(_HEADLINE)
        .with_columns(name=pl.format("{} {}", "task", "metric"), cell=cell)
        .pivot("name", index=["arm", "n_seeds", *COSTS], values="cell", sort_columns=True)
    )
    return table.select("arm", "n_seeds", pl.exclude("arm", "n_seeds", *COSTS), *COSTS).sort("arm")


COSTS = ("n_samples", "training_tokens", "training_seconds", "scoring_tokens", "scoring_seconds")


def _settings(workspace: Workspace) -> dict[str, Any]:
    training = workspace.settings.training
    shown = workspace.settings.evaluation.model_dump(exclude={"batch_size"}, mode="json")
    return {**shown, "template": training.template, "max_tokens": training.max_tokens}


def _evaluation_inputs(workspace: Workspace) -> list[Input]:
    return [Input(kind, name, file_digest(path)) for kind, name, path in evaluation_files(workspace)]


def _evaluate(icon: WorkspaceResource, model: Any, tokenizer: Any) -> list[Metric]:
    workspace, settings = icon.workspace, icon.settings.evaluation
    tasks = {task.name: read_choice_items(workspace.input_path(task.path)) for task in settings.multiple_choice}
    metrics: list[Metric] = []
    if tasks or settings.tasks:
        metrics += choice_metrics(
            model, tokenizer, tasks, names=settings.tasks, limit=settings.limit, batch_size=settings.batch_size,
            device=icon.device(),
        )  # fmt: skip
    if settings.held_out:
        metrics += held_out_metrics(model, _held_out(icon, settings.held_out), device=icon.device())
    return metrics


def _held_out(icon: WorkspaceResource, name: str) -> dict[str, list[Encoded]]:
    """Held-out samples by stratum, under the fine-tuning template."""
    workspace = icon.workspace
    source = SourceFile(name, name, workspace.input_path(name))
    ingested = ingest(source, workspace.settings.pool.max_chars)
    record, _ = icon.base_model()
    encoded = encode_samples(record, sample_frame(source, ingested), workspace.settings.training)
    strata: dict[str, list[Encoded]] = {}
    for located, sample in zip(ingested.samples, encoded, strict=True):
        strata.setdefault(str(located.fields.get("stratum", "all")), []).append(sample)
    return strata


def _report(
    context: dg.AssetExecutionContext, store: Store, recipe: Recipe, metrics: Sequence[Metric], checkpoint_id: str,
    arm: str, seed: int,
) -> dg.MaterializeResult:  # fmt: skip
    rows = [{"checkpoint_id": checkpoint_id, "arm": arm, "seed": seed, **vars(metric)} for metric in metrics]
    frame = pl.DataFrame(rows, schema_overrides={"stderr": pl.Float64, "value": pl.Float64})
    store.replace("eval_results", frame, checkpoint_id=checkpoint_id)
    return finish(context, store, recipe, frame_digest(frame), {"checkpoint_id": checkpoint_id, "metrics": len(rows)}, {
        "results": markdown_table(frame.select("task", "metric", "value", "stderr")),
        "dagster/row_count": frame.height,
    })  # fmt: skip
