"""Group `selection`: each arm's choice of training samples."""

from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.scoring import sample_scores
from icon_assets.assets.shell import finish, kept, mendable, unchanged
from icon_assets.core import ledger
from icon_assets.core.costs import total_cost
from icon_assets.core.errors import IconError
from icon_assets.core.ledger import Recipe
from icon_assets.core.selection import Subset, ranks_by_score, read_pool, select
from icon_assets.core.store import Store
from icon_assets.metadata import OWNERS, column_schema, histogram, markdown_table
from icon_assets.partitions import arm_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import Workspace

CODE_VERSION = "1"


def selection_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """The assets of this group; their partitions are the arms of the settings."""
    every_shard = dg.AssetDep(sample_scores, partition_mapping=dg.AllPartitionMapping())

    @dg.asset(
        partitions_def=arm_partitions(workspace), deps=[every_shard], group_name="selection",
        kinds={"polars", "deltalake"}, owners=OWNERS, code_version=CODE_VERSION, metadata=column_schema("selections"),
    )  # fmt: skip
    @mendable
    def selected_subset(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """The samples one arm chose, with rank, score and reason. `full` is the whole pool, duplicates once."""
        arm, store, settings = context.partition_key, icon.store, icon.settings.selection
        key = icon.score_key().value
        recipe = Recipe(
            "selected_subset", arm, tuple(event.as_input() for event in _scored_shards(store)),
            {"fraction": settings.fraction}, settings.seed, CODE_VERSION,
        )  # fmt: skip
        if event := kept(context, icon, recipe):
            return unchanged(event)
        pool = read_pool(store, key)
        subset = select(arm, pool, settings.fraction, settings.seed)
        store.replace(
            "selections",
            subset.rows.with_columns(subset_id=pl.lit(subset.subset_id), arm=pl.lit(arm)),
            arm=arm, subset_id=subset.subset_id,
        )  # fmt: skip
        summary = {
            "subset_id": subset.subset_id, "samples": subset.rows.height, "pool_samples": pool.height,
            **_scoring_cost(store, key, arm),
        }  # fmt: skip
        return finish(context, store, recipe, subset.subset_id, summary, {
            "dagster/row_count": subset.rows.height, **_pictures(subset, pool),
        })  # fmt: skip

    return [selected_subset]


def _scored_shards(store: Store) -> list[ledger.Event]:
    """The scores of every shard of the pool; selecting from part of it would silently favour what was scored first."""
    scored = ledger.current_shards(store, "sample_scores")
    missing = {event.partition for event in ledger.current_shards(store, "raw_pool")} - {
        event.partition for event in scored
    }
    if missing or not scored:
        raise IconError(f"sample_scores: {len(missing)} shards have no scores yet ({', '.join(sorted(missing)[:3])}); "
                        "materialize them first")  # fmt: skip
    return scored


def _scoring_cost(store: Store, key: str, arm: str) -> dict[str, Any]:
    """What scoring the pool has cost so far, and which kinds of `scoring_costs` the arm owes; those without score owe nothing."""
    tokens, seconds = total_cost(store, key) if ranks_by_score(arm) else (0, 0.0)
    owes = ["pairs", "controls"] if ranks_by_score(arm) else []
    return {"scoring_tokens": tokens, "scoring_seconds": round(seconds, 1), "owes": owes}


def _pictures(subset: Subset, pool: pl.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    chosen = subset.rows.join(pool, on="sample_id")
    columns = ["rank", "sample_id", "score", "n_context_tokens"]
    lengths = pl.DataFrame(
        {
            "": ["chosen", "pool"],
            "median_context_tokens": [chosen["n_context_tokens"].median(), pool["n_context_tokens"].median()],
            "median_response_chars": [chosen["n_response_chars"].median(), pool["n_response_chars"].median()],
        }
    )
    pictures = {
        "first_samples": markdown_table(chosen.sort("rank").select(columns).head(10)),
        "length": markdown_table(lengths),
    }
    if subset.rows["score"].null_count() < subset.rows.height:
        title = f"Score of the samples arm {subset.arm} chose"
        pictures["score_histogram"] = histogram(subset.rows["score"].drop_nulls().to_list(), title, "score")
    return pictures
