"""The skill of a selector, measured on samples that were used neither to train it nor to choose it, and compared with
length and with chance. A selector that knows only length has no skill.
"""

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.selector.learning import SELECTOR, is_top
from icon_assets.settings import SelectorSettings

_LENGTH = "length"
_RANDOM = "random"
_DRAWS = 500
_TAILS = (2.5, 97.5)


def skill(scored: pl.DataFrame, held_out: pl.DataFrame, settings: SelectorSettings) -> pl.DataFrame:
    """How well the selector, length and chance predict held-out contributions: predictor, metric, value, and the
    interval [low, high] of 95 % of bootstrap draws of the samples.

    Raises:
        IconError: the held-out samples are all alike, so that nothing can be measured.
    """
    rows = scored.join(held_out, on="sample_id").sort("sample_id")
    truth = rows["contribution"].to_numpy()
    length = rows["n_context_tokens"].to_numpy().astype(float)
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
                continue  # length has no correlation left once length is removed
            low, high = np.percentile([row[metric] for row in table[1:]], _TAILS)
            metrics.append((predictor, metric, table[0][metric], float(low), float(high)))
    return pl.DataFrame(metrics, schema=["predictor", "metric", "value", "low", "high"], orient="row")


def crowding(in_sample: pl.DataFrame, held_out: pl.DataFrame, settings: SelectorSettings) -> pl.DataFrame:
    """How far the selector's training samples crowd the top of its ranking. Rows as in `skill`: the shares of training
    samples and of held-out samples that are in the top fraction of both together. Both are drawn from the same samples,
    so the shares differ only because the selector has seen the training samples."""
    rng = np.random.default_rng(settings.seed)
    seen = in_sample["score"].to_numpy()
    unseen = held_out["score"].to_numpy()
    draws = [(rng.choice(seen, len(seen)), rng.choice(unseen, len(unseen))) for _ in range(_DRAWS)]
    shares = np.array([_top_shares(a, b, settings.top_fraction) for a, b in [(seen, unseen), *draws]])
    low, high = np.percentile(shares[1:], _TAILS, axis=0)
    names = ("top_share_trained_on", "top_share_held_out")
    return pl.DataFrame({"predictor": SELECTOR, "metric": names, "value": shares[0], "low": low, "high": high})


def _top_shares(seen: np.ndarray, unseen: np.ndarray, fraction: float) -> tuple[float, float]:
    top = is_top(pl.Series(np.concatenate([seen, unseen])), fraction)
    return float(top[: len(seen)].mean()), float(top[len(seen) :].mean())


def _resampled(top: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Draws of samples with replacement, without draws of only one class."""
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
    a = a - a.mean()
    b = b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def _partial(both: float, first: float, second: float) -> float:
    """Partial correlation of two variables without a third one, from the three pairwise correlations."""
    rest = (1 - first**2) * (1 - second**2)
    return (both - first * second) / rest**0.5 if rest > 1e-12 else 0.0
