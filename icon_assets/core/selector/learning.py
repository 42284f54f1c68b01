"""The selector: learns from directly scored samples to foretell contribution, and then ranks the whole pool at one pass a
sample. One ranking serves every fraction, so that selections are nested.

`light`: ridge regression on the model's own features (see `features`). `lora`: the paper's classifier of the top fraction
(arXiv 2505.05327), its head trained, its classes balanced. How well either does is measured on samples that it was neither
trained on nor chosen by, and compared with length and with chance: a selector that knows length alone is no selector.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import canonical_json, draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.features.reader import features_of, shard_features
from icon_assets.core.model.flops import model_shape
from icon_assets.core.model.loading import ModelRecord
from icon_assets.core.passes.costs import Bill, Spent
from icon_assets.core.passes.encoder import Encoder, pool_rows
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selector.classifier import Classifier, OnEpoch
from icon_assets.core.store.tables import Store, sql_text
from icon_assets.settings import SelectorSettings

LEAST_SAMPLES = 20
SELECTOR = "selector"
_LENGTH, _RANDOM = "length", "random"
_ALPHAS = tuple(float(alpha) for alpha in np.logspace(0, 6, 13))
_DRAWS, _TAILS = 500, (2.5, 97.5)
_PARTS = 10  # of the scored samples: one is reported on, one chooses the epoch, the others are trained on
_PREDICTED_TOGETHER = 4096
_CARD, _WEIGHTS, _OUT_OF_FOLD = "selector.json", "selector.safetensors", "out_of_fold.json"


@dataclass(frozen=True)
class Trained:
    """What training left besides files: predictions for samples that the model has not seen, and figures.

    Attributes:
        held_out: sample_id, score.
        in_sample: the same of samples that the model was trained on, where the ranking has no better score of them.
        n_train: samples that the final model was trained on.
        figures: of the training, by name.
    """

    held_out: pl.DataFrame
    n_train: int
    figures: Mapping[str, float] = field(default_factory=dict)
    in_sample: pl.DataFrame | None = None


def scored_samples(store: Store, key: ScoreKey, control: str, most: int) -> pl.DataFrame:
    """The directly scored samples to learn from, by id: sample_id, contribution, n_context_tokens; those with the lowest ids.

    Raises:
        IconError: too few of them.
    """
    parameters = {"score_key": key.value, "control": control, "most": most}
    rows = store.query(sql_text("scored_samples.sql"), parameters)
    if rows.height < LEAST_SAMPLES:
        raise IconError(
            f"selector: {rows.height} samples are scored under control {control}, {LEAST_SAMPLES} are needed; raise "
            "scoring.direct_share, or materialize sample_scores for more shards"
        )
    return rows


def is_top(values: pl.Series, fraction: float) -> np.ndarray:
    """Whether each value is among the top fraction."""
    order = np.argsort(-values.to_numpy(), kind="stable")
    top = np.zeros(len(order), bool)
    top[order[: ceil(fraction * len(order))]] = True
    return top


def part_of(sample_id: str, seed: int, n_parts: int) -> int:
    """Which of so many parts a sample falls into, whatever else is there."""
    return int(draw_key(seed, "part", sample_id)[:8], 16) % n_parts


# Light

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
        """Ridge regression; how strongly weights are held down is chosen by leave-one-out.

        Without an intercept: the target is centred, and the mean of a training fold would tell the held-out fold that it
        lies on the other side. Of several targets, [samples, targets], each has its own weights; `alpha` is their mean.
        """
        from sklearn.linear_model import RidgeCV

        mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
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
    """[samples, inputs] of what `features_of` gives: lengths, perplexities, embedding."""
    plain = features.select(
        pl.col("n_tokens").log1p(), pl.col("n_chars").log1p(),
        given=pl.col("nll_sum") / pl.col("n_tokens"), alone=pl.col("nll_alone") / pl.col("n_tokens"),
    ).to_numpy()  # fmt: skip
    embeddings = features["embedding"].list.to_array(len(features["embedding"][0])).to_numpy()
    return np.hstack([plain, embeddings.astype(np.float64)])


def normal_ranks(values: pl.Series) -> np.ndarray:
    """Values replaced by the normal quantiles of their ranks: outliers among contributions then teach no more than others."""
    inverse, n = NormalDist().inv_cdf, len(values)
    return np.array([inverse((rank - 0.5) / n) for rank in values.rank("average")])


def train_light(
    store: Store, key: ScoreKey, scored: pl.DataFrame, settings: SelectorSettings, directory: Path
) -> Trained:
    """Train on all scored samples and write the model; predict each sample by a model of the other folds.

    Raises:
        IconError: some samples have no features.
    """
    rows = _features(store, key, scored["sample_id"].to_list()).join(scored, on="sample_id").sort("sample_id")
    inputs, target = light_inputs(rows), normal_ranks(rows["contribution"])
    held_out = rows.select("sample_id", score=pl.Series(out_of_fold(inputs, target, rows["sample_id"], settings)))
    model = Light.fit(inputs, target)
    model.save(directory)
    (directory / _OUT_OF_FOLD).write_text(canonical_json(dict(held_out.iter_rows())) + "\n", "utf-8")
    return Trained(held_out, rows.height, {"alpha": model.alpha})


def predict_by_features(store: Store, key: ScoreKey, shard: str, directory: Path) -> Iterator[pl.DataFrame]:
    """sample_id and score of the samples of a shard, some at a time. Samples that the selector learned from keep what a model
    said that had not seen them: among the others' scores, its own would be too good.
    """
    model, unseen = Light.load(directory), json.loads((directory / _OUT_OF_FOLD).read_text("utf-8"))
    for features in shard_features(store, key, shard):
        predicted = pl.Series(model.predict(light_inputs(features)))
        own = pl.Series([unseen.get(sample_id) for sample_id in features["sample_id"]], dtype=pl.Float64)
        yield features.select("sample_id", score=pl.coalesce(own, predicted))


def out_of_fold(
    inputs: np.ndarray, target: np.ndarray, sample_ids: Sequence[str] | pl.Series, settings: SelectorSettings
) -> np.ndarray:
    """What models say that were trained on the other folds."""
    fold = np.array([part_of(sample_id, settings.seed, settings.folds) for sample_id in sample_ids])
    predicted = np.zeros(target.shape)
    for number in np.unique(fold):
        held_out = fold == number
        predicted[held_out] = Light.fit(inputs[~held_out], target[~held_out]).predict(inputs[held_out])
    return predicted


def relearn(store: Store, key: ScoreKey, sample_ids: Sequence[str], settings: SelectorSettings) -> Relearn:
    """The light selector trained anew on these samples by other contributions: from contributions to predictions out of
    fold, [samples, draws] both.

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


# LoRA


def train_classifier(
    store: Store, key: ScoreKey, base: ModelRecord, encoder: Encoder, scored: pl.DataFrame, settings: SelectorSettings,
    directory: Path, dtype: str, device: str, on_epoch: OnEpoch,
) -> Trained:  # fmt: skip
    """Train on eight tenths of the scored samples, which are labelled 1 in the top fraction, keep the epoch that does best on
    another, and write the model; the last tenth has no part in it, and is what is reported on.

    Raises:
        IconError: one of the three parts holds one label only.
    """
    top = is_top(scored["contribution"], settings.top_fraction)
    parts = np.array([part_of(i, settings.seed, _PARTS) for i in scored["sample_id"]])
    held, choosing, learned = parts == 0, parts == 1, parts > 1
    for labels in (top[held], top[choosing], top[learned]):
        if len(set(labels)) < 2:
            raise IconError(
                f"selector: of {len(top)} scored samples, the {len(labels)} in one part are all of one class; score more samples "
                "directly (scoring.direct_share), or set selector.kind to light"
            )
    texts = _texts(store, encoder, scored["sample_id"].to_list())
    train, others = ([texts[i] for i in scored["sample_id"].filter(pl.Series(part))] for part in (learned, choosing))
    model = Classifier.new(base.directory, settings.lora, settings.seed, dtype, device)
    bill = _bill(store, key, base, model, device)

    def settle(epoch: int, precision: float) -> None:
        bill.settle()
        on_epoch(epoch, precision)

    precision = model.train(train, top[learned], others, top[choosing], settings.lora, settings.seed, settle)
    model.save(directory, base.name)
    figures = {"best_epoch": 1 + max(range(len(precision)), key=lambda e: (precision[e], e))}
    unseen, seen = (_predicted(model, scored["sample_id"].filter(pl.Series(part)), texts) for part in (held, learned))
    bill.settle()
    return Trained(unseen, len(train), figures, seen)


def _predicted(model: Classifier, sample_ids: pl.Series, texts: Mapping[str, Sequence[int]]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": sample_ids, "score": model.predict([texts[i] for i in sample_ids])})


def _bill(store: Store, key: ScoreKey, base: ModelRecord, model: Classifier, device: str) -> Bill:
    """The bill of what a classifier does, learning or reading."""
    shape, adapter = model_shape(base.directory), model.adapter_parameters

    def total() -> Spent:
        done = model.passes
        flops = shape.training_flops(done.learned, adapter) + shape.flops(done.read)
        return Spent(
            done.texts, 0, done.forwards, done.learned.tokens + done.read.tokens, flops, engine="classifier, padded"
        )

    return Bill(store, key, SELECTOR, device, total)


def _texts(store: Store, encoder: Encoder, sample_ids: Sequence[str]) -> dict[str, list[int]]:
    """The token ids of samples as the classifier reads them: whole, as contexts."""
    rows = pool_rows(store, sample_ids)
    return {row["sample_id"]: [*encoder.leading, *encoder.context(row).ids] for row in rows}


def predict_by_classifier(
    store: Store, key: ScoreKey, shard: str, base: ModelRecord, encoder: Encoder, directory: Path, dtype: str, device: str
) -> Iterator[pl.DataFrame]:  # fmt: skip
    """sample_id and score of the samples of a shard, some at a time. Samples that the classifier was trained on get what it says
    of them: too good a score among the others', by as much as `crowding` says.
    """
    ids = store.query("SELECT DISTINCT sample_id FROM delta.pool WHERE shard = $shard ORDER BY ALL", {"shard": shard})
    if ids.is_empty():
        return
    model = Classifier.load(base.directory, directory, dtype, device)
    bill = _bill(store, key, base, model, device)
    for part in ids.iter_slices(_PREDICTED_TOGETHER):
        texts = _texts(store, encoder, part["sample_id"].to_list())
        predicted = _predicted(model, part["sample_id"], texts)
        bill.settle()
        yield predicted


# Either


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """What the selector is, for whoever finds the directory without the store."""
    (directory / _CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", "utf-8")


# How good it is


def report(scored: pl.DataFrame, held_out: pl.DataFrame, settings: SelectorSettings) -> pl.DataFrame:
    """How well held-out contributions are foretold by the selector, by length and by chance: predictor, metric, value, and
    the interval [low, high] that holds 95 % of bootstrap draws of the samples.

    Raises:
        IconError: the held-out samples are all alike, so that nothing can be measured.
    """
    rows = scored.join(held_out, on="sample_id").sort("sample_id")
    truth, length = rows["contribution"].to_numpy(), rows["n_context_tokens"].to_numpy().astype(float)
    top = is_top(scored["contribution"], settings.top_fraction)[
        scored["sample_id"].is_in(rows["sample_id"].to_list()).to_numpy()
    ]
    if len(set(top)) < 2:
        raise IconError(
            f"selector: the {rows.height} held-out samples are all of one class; score more samples directly "
            "(scoring.direct_share), or use selector.kind light, which holds out each sample once"
        )
    chance = np.array([int(draw_key(settings.seed, "random", i)[:13], 16) for i in rows["sample_id"]], float)
    predictors = {SELECTOR: rows["score"].to_numpy(), _LENGTH: length, _RANDOM: chance}
    draws = [np.arange(rows.height), *_resampled(top, np.random.default_rng(settings.seed))]
    metrics = []
    for predictor, predicted in predictors.items():
        table = [_metrics(predicted[d], truth[d], top[d], length[d]) for d in draws]
        for metric in table[0]:
            if predictor == _LENGTH and metric == "partial_spearman":
                continue  # nothing is left of length once it is taken out
            low, high = np.percentile([row[metric] for row in table[1:]], _TAILS)
            metrics.append((predictor, metric, table[0][metric], float(low), float(high)))
    return pl.DataFrame(metrics, schema=["predictor", "metric", "value", "low", "high"], orient="row")


def crowding(in_sample: pl.DataFrame, held_out: pl.DataFrame, settings: SelectorSettings) -> pl.DataFrame:
    """How much samples that the selector was trained on crowd the top of its ranking: rows as `report` has them, the share of
    those and of the held-out ones that stand in the top fraction of both together. Both are drawn from the same samples: what
    the shares differ by is that the selector knows the answers of the first.
    """
    rng = np.random.default_rng(settings.seed)
    seen, unseen = in_sample["score"].to_numpy(), held_out["score"].to_numpy()
    draws = [(rng.choice(seen, len(seen)), rng.choice(unseen, len(unseen))) for _ in range(_DRAWS)]
    shares = np.array([_top_shares(a, b, settings.top_fraction) for a, b in [(seen, unseen), *draws]])
    low, high = np.percentile(shares[1:], _TAILS, axis=0)
    names = ("top_share_trained_on", "top_share_held_out")
    return pl.DataFrame({"predictor": SELECTOR, "metric": names, "value": shares[0], "low": low, "high": high})


def _top_shares(seen: np.ndarray, unseen: np.ndarray, fraction: float) -> tuple[float, float]:
    top = is_top(pl.Series(np.concatenate([seen, unseen])), fraction)
    return float(top[: len(seen)].mean()), float(top[len(seen) :].mean())


def _resampled(top: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Draws of samples with replacement, those aside that hold one class only."""
    drawn = list[np.ndarray]()
    while len(drawn) < _DRAWS:
        draw = generator.integers(0, len(top), len(top))
        if len(set(top[draw])) == 2:
            drawn.append(draw)
    return drawn


def _metrics(predicted: np.ndarray, truth: np.ndarray, top: np.ndarray, length: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    p, t, n = (pl.Series(values).rank("average").to_numpy() for values in (predicted, truth, length))
    return {
        "spearman": _correlation(p, t),
        "auc": float(roc_auc_score(top, predicted)),
        "average_precision": float(average_precision_score(top, predicted)),
        "partial_spearman": _partial(_correlation(p, t), _correlation(p, n), _correlation(t, n)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def _partial(both: float, first: float, second: float) -> float:
    """Correlation of two things once a third, that they correlate with so much, is taken out of both."""
    rest = (1 - first**2) * (1 - second**2)
    return (both - first * second) / rest**0.5 if rest > 1e-12 else 0.0
