"""Group `scoring`, besides the scores: features of each sample and probe from one pass of the model over it alone."""

from typing import Any

import dagster as dg

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.assets.model import base_model
from icon_assets.assets.pool import raw_pool
from icon_assets.assets.probes import probe_set
from icon_assets.core.digests import frame_digest
from icon_assets.core.features.stored import probe_embeddings, stored_figures
from icon_assets.core.passes.costs import Spent
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse_changed
from icon_assets.metadata import OWNERS, column_schema, histogram
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource


@dg.asset(
    partitions_def=SHARDS,
    deps=[raw_pool, base_model],
    group_name="scoring",
    kinds={"pytorch", "deltalake"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["sample_features"],
    metadata=column_schema("sample_features"),
)
@mendable
def sample_features(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """One pass over every sample of a shard: NLL of its response with and without its prompt, and its embedding. For
    the selector, for the arms `rds`, `perplexity` and `ifd`, and for diversity. Only samples that are not stored yet
    are read."""
    shard = context.partition_key
    store = icon.store
    key = icon.score_key()
    recipe = icon.recipes.of("sample_features", shard)
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse_changed(icon.workspace, recipe.inputs)
    spent = icon.reader(context.log).complete_shard(shard)
    figures = stored_figures(store, key, shard)
    metadata: dict[str, Any] = {"dagster/row_count": figures.height}
    if figures.height:
        per_token = (figures["nll_sum"] / figures["n_tokens"]).to_list()
        metadata["nll_histogram"] = histogram(per_token, "NLL of the response", "nats per token")
    return finish(context, store, recipe, frame_digest(figures), _summary(key, figures.height, spent), metadata)


@dg.asset(
    deps=[probe_set, base_model],
    group_name="scoring",
    kinds={"pytorch", "deltalake"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["probe_features"],
    metadata=column_schema("probe_features"),
)
@mendable
def probe_features(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The embedding of every probe, made as for samples. The arm `rds` compares samples with them."""
    store = icon.store
    key = icon.score_key()
    recipe = icon.recipes.of("probe_features")
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse_changed(icon.workspace, recipe.inputs)
    spent = icon.reader(context.log).complete_probes()
    rows = probe_embeddings(store, key)
    summary = _summary(key, rows.height, spent)
    return finish(context, store, recipe, frame_digest(rows), summary, {"dagster/row_count": rows.height})


def _summary(key: ScoreKey, n: int, spent: Spent) -> dict[str, int | float | str]:
    return {
        "score_key": key.value,
        "samples": n,
        "new_samples": spent.pairs,
        **spent.figures,
    }
