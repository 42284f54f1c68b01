"""Group `selection`, before the arms: the model that learned to predict contribution, and its predictions for the whole
pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.features import sample_features
from icon_assets.assets.lifecycle import finish, kept, mendable, refuse_changed, unchanged
from icon_assets.assets.pool import raw_pool
from icon_assets.assets.scoring import sample_scores
from icon_assets.core.digests import canonical_json, directory_digest, frame_digest
from icon_assets.core.errors import IconError
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.planning.recipes import CODE_VERSIONS, learned_control
from icon_assets.core.quality import refuse
from icon_assets.core.selector.learning import (
    SELECTOR,
    Trained,
    scored_samples,
    write_card,
)
from icon_assets.core.selector.light import predict_by_features, train_light
from icon_assets.core.selector.lora import predict_by_classifier, train_classifier
from icon_assets.core.selector.skill import crowding, skill
from icon_assets.core.store.ledger import Recipe
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
    refuse_changed(icon, recipe.inputs)
    scored = scored_samples(store, icon.score_key(), control, settings.selector.samples)
    name = f"{settings.selector.kind}-{recipe.fingerprint[:8]}"
    target = workspace.selectors_dir / name
    with sole_writer(target), new_directory(target) as partial:
        trained = _train(context, icon, scored, partial)
        write_card(
            partial,
            {
                "selector_id": recipe.fingerprint,
                "kind": settings.selector.kind,
                "control": control,
                "n_train": trained.n_train,
                "settings": dict(recipe.settings),
                **trained.figures,
            },
        )
        product = directory_digest(partial)
    metrics = skill(scored, trained.held_out, settings.selector)
    if trained.in_sample is not None:
        metrics = pl.concat([metrics, crowding(trained.in_sample, trained.held_out, settings.selector)])
    made = _Made(recipe, control, target.relative_to(workspace.root).as_posix(), product, trained, metrics)
    _store(icon, made)
    return finish(
        context,
        store,
        recipe,
        product,
        made.summary,
        {
            "skill": markdown_table(metrics),
            "predicted_against_measured": scatter(
                trained.held_out.join(scored, on="sample_id").select("score", "contribution").rows(),
                f"Held-out samples, control {control}",
                "predicted",
                "contribution",
            ),
        },
    )


@dataclass(frozen=True)
class _Made:
    """A trained selector and its directory."""

    recipe: Recipe
    control: str
    path: str
    digest: str
    trained: Trained
    metrics: pl.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        own = self.metrics.filter(pl.col("predictor") == SELECTOR).select("metric", "value").iter_rows()
        return {
            "selector_id": self.recipe.fingerprint,
            "path": self.path,
            "train_samples": self.trained.n_train,
            "held_out_samples": self.trained.held_out.height,
            **{name: round(value, 4) for name, value in own},
            **self.trained.figures,
        }


def _train(
    context: dg.AssetExecutionContext, icon: WorkspaceResource, scored: pl.DataFrame, directory: Path
) -> Trained:
    settings = icon.settings
    if settings.selector.kind == "light":
        return train_light(icon.store, icon.score_key(), scored, settings.selector, directory)
    record, dtype = icon.base_model()

    def say(epoch: int, precision: float) -> None:
        context.log.info(f"epoch {epoch} of {settings.selector.lora.epochs}: average precision {precision:.3f}")

    return train_classifier(
        icon.store,
        icon.score_key(),
        record,
        icon.encoder(),
        scored,
        settings.selector,
        directory,
        dtype,
        icon.device(),
        say,
    )


def _store(icon: WorkspaceResource, made: _Made) -> None:
    """Store the metrics first, because the row in `selectors` makes the selector the current one."""
    own = made.recipe.fingerprint
    store = icon.store
    row = {
        "selector_id": own,
        "kind": icon.settings.selector.kind,
        "model_digest": icon.base_model()[0].digest,
        "control": made.control,
        "n_train": made.trained.n_train,
        "n_held_out": made.trained.held_out.height,
        "path": made.path,
        "digest": made.digest,
        "settings": canonical_json(dict(made.recipe.settings)),
        "created_at": store.now_after("selectors", "created_at"),
    }
    store.replace("selector_metrics", made.metrics.with_columns(selector_id=pl.lit(own)), selector_id=own)
    store.append("selectors", pl.DataFrame([row]))


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
    refuse_changed(icon, recipe.inputs)
    parts = list(_predicted(icon, shard, icon.workspace.root / str(made.summary["path"])))
    scores = pl.concat(parts) if parts else pl.DataFrame(schema={"sample_id": pl.String, "score": pl.Float64})
    selector_id = str(made.summary["selector_id"])
    rows = scores.with_columns(shard=pl.lit(shard), selector_id=pl.lit(selector_id)).sort("score", "sample_id")
    store.replace("predicted_scores", rows, shard=shard)
    summary = {"selector_id": selector_id, "samples": rows.height}
    pictures = {"score_histogram": histogram(rows["score"].to_list(), "Predicted", "score")} if rows.height else {}
    return finish(context, store, recipe, frame_digest(rows), summary, {"dagster/row_count": rows.height, **pictures})


def _predicted(icon: WorkspaceResource, shard: str, directory: Path) -> Iterator[pl.DataFrame]:
    if icon.settings.selector.kind == "light":
        return predict_by_features(icon.store, icon.score_key(), shard, directory)
    record, dtype = icon.base_model()
    return predict_by_classifier(
        icon.store, icon.score_key(), shard, record, icon.encoder(), directory, dtype, icon.device()
    )
