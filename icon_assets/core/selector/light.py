"""The light selector: ridge regression on the model's own features (see `core/features`)."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import canonical_json
from icon_assets.core.errors import IconError
from icon_assets.core.features.stored import features_of, shard_features
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selector.learning import Trained, part_of
from icon_assets.core.store.tables import Store
from icon_assets.settings import SelectorSettings

_ALPHAS = tuple(float(alpha) for alpha in np.logspace(0, 6, 13))
_WEIGHTS = "selector.safetensors"
_OUT_OF_FOLD = "out_of_fold.json"


Relearn = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Light:
    """A linear model of the features: standardised, weighted, summed."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    alpha: float

    @classmethod
    def fit(cls, inputs: np.ndarray, target: np.ndarray) -> "Light":
        """Ridge regression, with the penalty chosen by leave-one-out.

        There is no intercept. The target is centred, so the mean of a training fold would reveal that the mean of the
        held-out fold is on the other side. With several targets, [samples, targets], each has its own weights; `alpha`
        is their mean."""
        from sklearn.linear_model import RidgeCV

        mean = inputs.mean(axis=0)
        scale = inputs.std(axis=0)
        scale[scale == 0] = 1
        ridge: Any = RidgeCV(_ALPHAS, fit_intercept=False, alpha_per_target=target.ndim > 1)
        ridge.fit((inputs - mean) / scale, target)
        return cls(mean, scale, np.asarray(ridge.coef_).T, float(np.mean(ridge.alpha_)))

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return ((inputs - self.mean) / self.scale) @ self.weights

    def save(self, directory: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {"mean": self.mean, "scale": self.scale, "weights": self.weights, "alpha": np.array([self.alpha])}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _WEIGHTS)

    @classmethod
    def load(cls, directory: Path) -> "Light":
        from safetensors.numpy import load_file

        arrays = load_file(directory / _WEIGHTS)
        return cls(arrays["mean"], arrays["scale"], arrays["weights"], float(arrays["alpha"][0]))


def light_inputs(features: pl.DataFrame) -> np.ndarray:
    """The inputs [samples, inputs] from `features_of`: lengths, perplexities, embedding."""
    plain = features.select(
        pl.col("n_tokens").log1p(),
        pl.col("n_chars").log1p(),
        given=pl.col("nll_sum") / pl.col("n_tokens"),
        alone=pl.col("nll_alone") / pl.col("n_tokens"),
    ).to_numpy()
    embeddings = features["embedding"].list.to_array(len(features["embedding"][0])).to_numpy()
    return np.hstack([plain, embeddings.astype(np.float64)])


def normal_ranks(values: pl.Series) -> np.ndarray:
    """Values replaced by the normal quantiles of their ranks, so that outliers among contributions have no more weight
    than others."""
    inverse = NormalDist().inv_cdf
    n = len(values)
    return np.array([inverse((rank - 0.5) / n) for rank in values.rank("average")])


def train_light(
    store: Store, key: ScoreKey, scored: pl.DataFrame, settings: SelectorSettings, directory: Path
) -> Trained:
    """Train on all scored samples and write the model; predict each sample by a model of the other folds.

    Raises:
        IconError: some samples have no features.
    """
    rows = _features(store, key, scored["sample_id"].to_list()).join(scored, on="sample_id").sort("sample_id")
    inputs = light_inputs(rows)
    target = normal_ranks(rows["contribution"])
    held_out = rows.select("sample_id", score=pl.Series(out_of_fold(inputs, target, rows["sample_id"], settings)))
    model = Light.fit(inputs, target)
    model.save(directory)
    (directory / _OUT_OF_FOLD).write_text(canonical_json(dict(held_out.iter_rows())) + "\n", "utf-8")
    return Trained(held_out, rows.height, {"alpha": model.alpha})


def predict_by_features(store: Store, key: ScoreKey, shard: str, directory: Path) -> Iterator[pl.DataFrame]:
    """sample_id and score of the samples of a shard, in chunks. Samples that the selector learned from keep the
    prediction of a model that had not seen them, because the selector's own scores for them would be too high."""
    model = Light.load(directory)
    unseen = json.loads((directory / _OUT_OF_FOLD).read_text("utf-8"))
    for features in shard_features(store, key, shard):
        predicted = pl.Series(model.predict(light_inputs(features)))
        own = pl.Series([unseen.get(sample_id) for sample_id in features["sample_id"]], dtype=pl.Float64)
        yield features.select("sample_id", score=pl.coalesce(own, predicted))


def out_of_fold(
    inputs: np.ndarray, target: np.ndarray, sample_ids: Sequence[str] | pl.Series, settings: SelectorSettings
) -> np.ndarray:
    """Predictions of models that were trained on the other folds."""
    fold = np.array([part_of(sample_id, settings.seed, settings.folds) for sample_id in sample_ids])
    predicted = np.zeros(target.shape)
    for number in np.unique(fold):
        held_out = fold == number
        predicted[held_out] = Light.fit(inputs[~held_out], target[~held_out]).predict(inputs[held_out])
    return predicted


def relearn(store: Store, key: ScoreKey, sample_ids: Sequence[str], settings: SelectorSettings) -> Relearn:
    """The light selector trained again on these samples with other contributions: a function from contributions to
    out-of-fold predictions, both [samples, draws].

    Raises:
        IconError: some samples have no features.
    """
    inputs = light_inputs(_features(store, key, sample_ids))

    def predictions(contributions: np.ndarray) -> np.ndarray:
        targets = [normal_ranks(pl.Series(column)) for column in contributions.T]
        return out_of_fold(inputs, np.stack(targets, axis=1), sample_ids, settings)

    return predictions


def _features(store: Store, key: ScoreKey, sample_ids: Sequence[str]) -> pl.DataFrame:
    """In the order of these samples."""
    features = features_of(store, key, sample_ids)
    if features.height < len(sample_ids):
        raise IconError(
            f"selector: {len(sample_ids) - features.height:,} of {len(sample_ids):,} scored samples have no features; "
            "materialize sample_features for every shard first"
        )
    order = pl.DataFrame({"sample_id": list(sample_ids)})
    return order.join(features, on="sample_id", maintain_order="left")
