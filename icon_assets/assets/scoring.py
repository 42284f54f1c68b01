"""Group `scoring`: perplexities of probes, and the contribution of every sample."""

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.assets.model import base_model
from icon_assets.assets.pool import raw_pool
from icon_assets.assets.probes import probe_set
from icon_assets.core.digests import canonical_json, frame_digest
from icon_assets.core.passes.costs import Spent
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.planning.freshness import because
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse, refuse_changed
from icon_assets.core.quality.scores import no_sample_is_a_probe
from icon_assets.core.scoring.controls import baseline, perplexity_by_stratum
from icon_assets.core.scoring.drift import drift
from icon_assets.core.store import ledger
from icon_assets.metadata import OWNERS, column_schema, histogram, markdown_table
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource


@dg.asset(
    deps=[probe_set, base_model],
    group_name="scoring",
    kinds={"pytorch", "deltalake"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["probe_baseline"],
    metadata=column_schema("control_scores"),
)
@mendable
def probe_baseline(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """NLL of every probe without context, the baseline of every score. Control contexts are added when samples need
    them."""
    store = icon.store
    key = icon.score_key()
    recipe = icon.recipes.of("probe_baseline")
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse_changed(icon.workspace, recipe.inputs)
    row = {
        "score_key": key.value,
        "model_digest": key.model_digest,
        "settings": canonical_json(key.settings()),
        "created_at": store.now_after("score_keys", "created_at"),
    }
    before = ledger.newest(store, "probe_baseline")
    scorer = icon.scorer(context.log)
    spent = scorer.complete_baseline()
    if before and not ledger.differences(before, recipe):  # made again, together with the controls
        spent.add(scorer.complete_controls(icon.settings.controls))
    store.append("score_keys", pl.DataFrame([row]))
    frame = baseline(store, key)
    return finish(
        context,
        store,
        recipe,
        frame_digest(frame),
        _summary(key, spent),
        {
            "dagster/row_count": frame.height,
            "perplexity_by_stratum": markdown_table(perplexity_by_stratum(frame)),
        },
    )


@dg.asset(
    partitions_def=SHARDS,
    deps=[raw_pool, probe_set, base_model, probe_baseline],
    group_name="scoring",
    kinds={"pytorch", "duckdb", "deltalake"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["sample_scores"],
    metadata=column_schema("sample_scores"),
)
@mendable
def sample_scores(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The contribution of every sample of a shard (arXiv 2505.05327): how much better the model answers the probes when
    the sample is in its context. Only pairs that are not stored yet are computed; scores are SQL over the pairs.
    """
    shard = context.partition_key
    store = icon.store
    recipes = icon.recipes
    settings = recipes.settings.controls
    key = recipes.key
    recipe = recipes.of("sample_scores", shard)
    budget = recipes.budget
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse(icon.workspace, "sample_scores", shard, no_sample_is_a_probe)
    refuse_changed(icon.workspace, recipe.inputs)
    why = because(ledger.newest(store, "sample_scores", shard), recipe)
    scorer = icon.scorer(context.log)
    spent = scorer.complete_shard(shard, settings, budget)
    if spent.engine and not spent.engine.startswith("packed"):
        context.log.warning(f"This model's attention can't be packed: scored {spent.engine}, several times slower.")
    scores = scorer.scores(shard, settings, budget)
    primary = scores.filter(pl.col("control") == settings.primary)
    moved = drift(store, shard, primary)
    store.replace("sample_scores", scores, shard=shard, score_key=key.value)
    figures = {
        "samples": primary.height,
        "mean_contribution": primary["contribution"].mean() or 0.0,
        "pairs_per_sample": primary["n_probes"].mean() or 0.0,
        "because": why or "new",
        **moved,
    }
    return finish(
        context,
        store,
        recipe,
        frame_digest(scores),
        {**_summary(key, spent), **figures},
        {
            "dagster/row_count": scores.height,
            **(_pictures(primary, settings.primary) if primary.height else {}),
        },
    )


def _summary(key: ScoreKey, spent: Spent) -> dict[str, int | float | str]:
    return {
        "score_key": key.value,
        "new_pairs": spent.pairs,
        "control_pairs": spent.control_pairs,
        **spent.figures,
        "engine": spent.engine,
    }


def _pictures(primary: pl.DataFrame, control: str) -> dict[str, dg.MarkdownMetadataValue]:
    """Ids only: training text stays in the store."""
    columns = ["sample_id", "contribution", "consistency", "n_context_tokens"]
    ranked = primary.sort("contribution", descending=True).select(columns)
    title = f"Contribution against control {control} (dashed: median)"
    return {
        "score_histogram": histogram(primary["contribution"].to_list(), title, "contribution"),
        "top_samples": markdown_table(ranked.head(10)),
        "bottom_samples": markdown_table(ranked.tail(10).reverse()),
    }
