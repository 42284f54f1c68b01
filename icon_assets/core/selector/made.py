"""A selector of either kind: trained, measured, stored, and asked for its predictions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from icon_assets.core.digests import canonical_json, directory_digest
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selector.classifier import OnEpoch
from icon_assets.core.selector.learning import SELECTOR, Trained, write_card
from icon_assets.core.selector.light import predict_by_features, train_light
from icon_assets.core.selector.lora import predict_by_classifier, train_classifier
from icon_assets.core.selector.skill import crowding, skill
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


@dataclass(frozen=True)
class Base:
    """The base model that a classifier is made of; the light kind needs none."""

    record: ModelRecord
    dtype: str
    device: str
    encoder: Encoder


@dataclass(frozen=True)
class MadeSelector:
    """A selector that was trained, and where it lies."""

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


def make_selector(
    workspace: Workspace,
    key: ScoreKey,
    recipe: Recipe,
    control: str,
    scored: pl.DataFrame,
    load_base: Callable[[], Base],
    on_epoch: OnEpoch,
) -> MadeSelector:
    """Train the kind of `selector.kind` on the scored samples, and measure it. Its directory appears as a whole.

    Args:
        control: whose contributions are learned.
        scored: see `scored_samples`.
    """
    settings = workspace.settings.selector
    target = workspace.selectors_dir / f"{settings.kind}-{recipe.fingerprint[:8]}"
    with sole_writer(target), new_directory(target) as partial:
        trained = _train(workspace, key, scored, partial, load_base, on_epoch)
        write_card(
            partial,
            {
                "selector_id": recipe.fingerprint,
                "kind": settings.kind,
                "control": control,
                "n_train": trained.n_train,
                "settings": dict(recipe.settings),
                **trained.figures,
            },
        )
        product = directory_digest(partial)
    metrics = skill(scored, trained.held_out, settings)
    if trained.in_sample is not None:
        metrics = pl.concat([metrics, crowding(trained.in_sample, trained.held_out, settings)])
    return MadeSelector(recipe, control, target.relative_to(workspace.root).as_posix(), product, trained, metrics)


def _train(
    workspace: Workspace,
    key: ScoreKey,
    scored: pl.DataFrame,
    directory: Path,
    load_base: Callable[[], Base],
    on_epoch: OnEpoch,
) -> Trained:
    store = Store(workspace.store_dir)
    settings = workspace.settings.selector
    if settings.kind == "light":
        return train_light(store, key, scored, settings, directory)
    base = load_base()
    return train_classifier(
        store, key, base.record, base.encoder, scored, settings, directory, base.dtype, base.device, on_epoch
    )


def store_selector(store: Store, made: MadeSelector, kind: str, model_digest: str) -> None:
    """Metrics first: the row in `selectors` is what makes it the current one."""
    own = made.recipe.fingerprint
    row = {
        "selector_id": own,
        "kind": kind,
        "model_digest": model_digest,
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


def predict(
    store: Store, key: ScoreKey, shard: str, kind: str, directory: Path, load_base: Callable[[], Base]
) -> pl.DataFrame:
    """sample_id and score of every sample of a shard, by the selector in `directory`."""
    parts = list(_predicted(store, key, shard, kind, directory, load_base))
    return pl.concat(parts) if parts else pl.DataFrame(schema={"sample_id": pl.String, "score": pl.Float64})


def _predicted(
    store: Store, key: ScoreKey, shard: str, kind: str, directory: Path, load_base: Callable[[], Base]
) -> Iterator[pl.DataFrame]:
    if kind == "light":
        return predict_by_features(store, key, shard, directory)
    base = load_base()
    return predict_by_classifier(store, key, shard, base.record, base.encoder, directory, base.dtype, base.device)
