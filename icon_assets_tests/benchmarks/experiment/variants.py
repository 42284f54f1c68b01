"""Why a ranking comes out as it does: changes of the score, judged on the stored pairs without training.

A variant turns the influences of a sample on some probes into one number. It is judged by probes that it has not seen: ranked by one
half of them, what do its best samples do for the other half, and how much of that is length?
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, trim_mean

from icon_assets.core.contribution import influences, matrix
from icon_assets.core.peers import typical
from icon_assets.core.trust import auc, spearman
from icon_assets.resources import WorkspaceResource

SPLITS = 40
FRACTION = 0.15
Score = Callable[["Pairs", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Every sample with every probe. `ratio` and `control` are PPL(S|T) and PPL(S|control(T)) over PPL(S), [samples, probes]."""

    ratio: np.ndarray
    control: np.ndarray
    length: np.ndarray  # tokens of the sample as context
    n_tokens: np.ndarray  # response tokens of the probes
    strata: np.ndarray  # of the probes

    @property
    def influence(self) -> np.ndarray:
        return self.control - self.ratio

    @property
    def gain(self) -> np.ndarray:
        """Nats per response token that the sample saves."""
        return np.log(self.control) - np.log(self.ratio)


def _paper(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return pairs.influence[:, probes].mean(axis=1)


def _log_ratio(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return pairs.gain[:, probes].mean(axis=1)


def _per_token(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return pairs.gain[:, probes] @ pairs.n_tokens[probes] / pairs.n_tokens[probes].sum()


def _trimmed(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return trim_mean(pairs.influence[:, probes], 0.1, axis=1)


def _median(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return np.median(pairs.influence[:, probes], axis=1)


def _standardized(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    gain = pairs.gain[:, probes]
    return ((gain - gain.mean(axis=0)) / (gain.std(axis=0) + 1e-9)).mean(axis=1)


def _consistency(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    return (pairs.influence[:, probes] > 0).mean(axis=1)


def _by_stratum(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    strata = pairs.strata[probes]
    return np.mean([pairs.influence[:, probes[strata == s]].mean(axis=1) for s in np.unique(strata)], axis=0)


def _within_length(pairs: Pairs, probes: np.ndarray) -> np.ndarray:
    """The paper's score as a rank among the samples of about the same length (ten strata)."""
    score, stratum = _paper(pairs, probes), np.floor(10 * (rankdata(pairs.length) - 0.5) / len(pairs.length))
    rank = np.zeros(len(score))
    for value in np.unique(stratum):
        own = stratum == value
        rank[own] = rankdata(score[own]) / own.sum()
    return rank


SCORES: dict[str, Score] = {
    "paper (mean PPL ratio)": _paper, "log ratio": _log_ratio, "log ratio per token": _per_token,
    "trimmed mean": _trimmed, "median": _median, "standardized log ratio": _standardized, "consistency": _consistency,
    "mean over strata": _by_stratum, "within length strata": _within_length,
}  # fmt: skip


def variants(icon: WorkspaceResource) -> list[dict[str, Any]]:
    """One row per control and score."""
    rows = []
    for control, pairs in _controls(icon):
        rows += [
            {"control": control, "score": name, **_judged(pairs, score)} for name, score in SCORES.items()
        ]  # fmt: skip
    return rows


def _controls(icon: WorkspaceResource) -> Iterator[tuple[str, Pairs]]:
    store, key, settings = icon.store, icon.score_key(), icon.settings.controls
    samples = store.query(
        "SELECT sample_id, n_context_tokens FROM contexts WHERE score_key = $key ORDER BY sample_id", {"key": key.value}
    )
    probes = store.query(
        """
        SELECT probe_id, stratum, n_tokens FROM probes JOIN control_scores USING (probe_id)
        WHERE score_key = $key AND control = 'none' ORDER BY probe_id
        """,
        {"key": key.value},
    )
    table = influences(store, key, None, settings, samples["sample_id"].to_list())
    by_control = {c: matrix(rows) for (c,), rows in table.group_by("control")}
    ids, probe_ids, none = by_control["none"]
    complete = ~np.isnan(none).any(axis=1)
    length = dict(samples.iter_rows())
    assert probe_ids == probes["probe_id"].to_list()

    def pairs(control: np.ndarray) -> Pairs:
        return Pairs(
            1 - none[complete], control, np.array([length[i] for i in ids])[complete], probes["n_tokens"].to_numpy(),
            probes["stratum"].to_numpy(),
        )  # fmt: skip

    ratio = 1 - none[complete]
    yield "none", pairs(np.ones_like(ratio))
    if "random_tokens" in by_control:
        yield "random_tokens", pairs(by_control["random_tokens"][2][complete] + ratio)
    yield "peers", pairs(_peers(ratio, pairs(ratio).length))


def _peers(ratio: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What a typical sample of the length does to each probe."""
    return np.exp(typical(length, np.log(ratio), length))


def _judged(pairs: Pairs, score: Score) -> dict[str, float]:
    whole = score(pairs, np.arange(pairs.ratio.shape[1]))
    rng, halves = np.random.default_rng(0), list[dict[str, float]]()
    for _ in range(SPLITS):
        order = rng.permutation(pairs.ratio.shape[1])
        halves.append(_half(pairs, score, order[: len(order) // 2], order[len(order) // 2 :]))
    means = {name: float(np.mean([half[name] for half in halves])) for name in halves[0]}
    return {
        "length_spearman": spearman(whole, pairs.length), "length_auc": _auc(whole, pairs.length),
        "overlap_with_paper": _overlap(whole, _paper(pairs, np.arange(pairs.ratio.shape[1]))), **means,
    }  # fmt: skip


def _half(pairs: Pairs, score: Score, seen: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Ranked by the seen probes; `gain` is against no context, on the unseen ones, over the mean sample's."""
    a, b = score(pairs, seen), score(pairs, unseen)
    gain = -np.log(pairs.ratio[:, unseen]).mean(axis=1)
    expected = _expected(gain, pairs.length)
    best = _top(a)
    return {
        "reliability": spearman(a, b),
        "reliability_beyond_length": spearman(a - _expected(a, pairs.length), b - _expected(b, pairs.length)),
        "unseen_gain": float(gain[best].mean() - gain.mean()),
        "unseen_gain_beyond_length": float((gain - expected)[best].mean()),
    }


def _expected(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    return typical(length, values[:, None], length)[:, 0]


def _top(values: np.ndarray) -> np.ndarray:
    return np.argsort(-values, kind="stable")[: round(FRACTION * len(values))]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return len(set(_top(a)) & set(_top(b))) / len(_top(a))


def _auc(score: np.ndarray, length: np.ndarray) -> float:
    """How well length tells the chosen from the others."""
    chosen = np.zeros(len(score), bool)
    chosen[_top(score)] = True
    return auc(length, chosen)
