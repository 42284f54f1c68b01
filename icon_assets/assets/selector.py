"""Group `selection`, before the arms: the model that learned to predict contribution, and its predictions for the whole
pool."""

import dagster as dg
import polars as pl

from icon_assets.assets.features import sample_features
from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.assets.pool import raw_pool
from icon_assets.assets.scoring import sample_scores
from icon_assets.core.digests import frame_digest
from icon_assets.core.errors import IconError
from icon_assets.core.planning.recipes import CODE_VERSIONS, learned_control
from icon_assets.core.quality import refuse, refuse_changed
from icon_assets.core.selector.learning import scored_samples
from icon_assets.core.selector.made import Base, make_selector, predict, store_selector
from icon_assets.metadata import OWNERS, column_schema, histogram, markdown_table, scatter
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource

_ALL_SHARDS = dg.AllPartitionMapping()


@dg.asset(
    deps=[
        dg.AssetDep(sample_scores, partition_mapping=_ALL_SHARDS),
        dg.AssetDep(sample_features, partition_mapping=_ALL_SHARDS),
    ],
    group_name="selection",
    kinds={"scikitlearn", "pytorch"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["selector"],
    metadata=column_schema("selectors"),
)
@mendable
def selector(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """A model that predicts contribution, trained on the directly scored samples: ridge regression on the features, or
    the paper's LoRA classifier. Its skill is compared with length alone and with chance, on samples that were used
    neither to train it nor to choose it. For the classifier, the metrics also show how far its training samples crowd
    the top of its ranking.
    """
    workspace = icon.workspace
    store = icon.store
    settings = icon.settings
    control = learned_control(settings)
    if control not in settings.controls.kinds:
        raise IconError(f"selector.control: {control!r} is not computed; add it to controls.kinds")
    recipe = icon.recipes.of("selector")
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse_changed(icon.workspace, recipe.inputs)
    scored = scored_samples(store, icon.score_key(), control, settings.selector.samples)

    def say(epoch: int, precision: float) -> None:
        context.log.info(f"epoch {epoch} of {settings.selector.lora.epochs}: average precision {precision:.3f}")

    made = make_selector(workspace, icon.score_key(), recipe, control, scored, lambda: _base(icon), say)
    store_selector(store, made, settings.selector.kind, icon.base_model()[0].digest)
    return finish(
        context,
        store,
        recipe,
        made.digest,
        made.summary,
        {
            "skill": markdown_table(made.metrics),
            "predicted_against_measured": scatter(
                made.trained.held_out.join(scored, on="sample_id").select("score", "contribution").rows(),
                f"Held-out samples, control {control}",
                "predicted",
                "contribution",
            ),
        },
    )


@dg.asset(
    partitions_def=SHARDS,
    deps=[raw_pool, sample_features, selector],
    group_name="selection",
    kinds={"numpy", "deltalake"},
    owners=OWNERS,
    pool="gpu",
    code_version=CODE_VERSIONS["predicted_scores"],
    metadata=column_schema("predicted_scores"),
)
@mendable
def predicted_scores(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The selector's score for every sample of a shard, whether scored directly or not. The light selector predicts
    each sample that it learned from with a model that has not seen it, so that all samples are ranked alike. The
    classifier also ranks its own training samples, which therefore rank too high. `selector_metrics` (`top_share_...`)
    shows by how much."""
    shard = context.partition_key
    store = icon.store
    recipes = icon.recipes
    recipe = recipes.of("predicted_scores", shard)
    made = recipes.needed("selector")
    if event := kept(context, icon, recipe):
        return unchanged(event)
    refuse(icon.workspace, "selector")
    refuse_changed(icon.workspace, recipe.inputs)
    directory = icon.workspace.root / str(made.summary["path"])
    scores = predict(store, icon.score_key(), shard, icon.settings.selector.kind, directory, lambda: _base(icon))
    selector_id = str(made.summary["selector_id"])
    rows = scores.with_columns(shard=pl.lit(shard), selector_id=pl.lit(selector_id)).sort("score", "sample_id")
    store.replace("predicted_scores", rows, shard=shard)
    summary = {"selector_id": selector_id, "samples": rows.height}
    pictures = {"score_histogram": histogram(rows["score"].to_list(), "Predicted", "score")} if rows.height else {}
    return finish(context, store, recipe, frame_digest(rows), summary, {"dagster/row_count": rows.height, **pictures})


def _base(icon: WorkspaceResource) -> Base:
    record, dtype = icon.base_model()
    return Base(record, dtype, icon.device(), icon.encoder())
