"""Why a ranking comes out as it does: changes of the score, judged on the stored pairs without training.

A variant turns the influences of a sample on some probes into one number. It is judged by probes that it has not seen:
ranked by one half of them, what do its best samples do for the other half, over the mean sample, and over samples of
their length? And is that more than the paper's score reaches, beyond what other samples and other probes would change?

No yardstick is neutral. `gain` is the mean of log ratios, so that it leans towards the scores of that name; `ppl_gain`,
the mean share of perplexity saved, leans towards the paper's. What wins by both wins."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata, trim_mean

from icon_assets.core.evaluation.comparison import BETTER, OPEN, WORSE
from icon_assets.core.scoring.contribution import influences, matrix
from icon_assets.core.scoring.peers import typical
from icon_assets.core.trust.figures import auc, spearman
from icon_assets.resources import WorkspaceResource

SPLITS = 40
DRAWS = 400
FRACTION = 0.15
LEVEL = 0.05
MEASURES = ("gain", "gain_beyond_length", "ppl_gain", "ppl_gain_beyond_length")
Score = Callable[["Pairs", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Every sample with every probe. `ratio` and `control` are PPL(S|T) and PPL(S|control(T)) over PPL(S), [samples,
    probes]."""

    ratio: np.ndarray
    control: np.ndarray
    length: np.ndarray  # tokens of the sample as context
    n_tokens: np.ndarray  # response tokens of the probes
    strata: np.ndarray  # of the probes

    @cached_property
    def influence(self) -> np.ndarray:
        return self.control - self.ratio

    @cached_property
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
    score = _paper(pairs, probes)
    stratum = np.floor(10 * (rankdata(pairs.length) - 0.5) / len(pairs.length))
    rank = np.zeros(len(score))
    for value in np.unique(stratum):
        own = stratum == value
        rank[own] = rankdata(score[own]) / own.sum()
    return rank


PAPER = "paper (mean PPL ratio)"
SCORES: dict[str, Score] = {
    PAPER: _paper,
    "log ratio": _log_ratio,
    "log ratio per token": _per_token,
    "trimmed mean": _trimmed,
    "median": _median,
    "standardized log ratio": _standardized,
    "consistency": _consistency,
    "mean over strata": _by_stratum,
    "within length strata": _within_length,
}


def variants(icon: WorkspaceResource) -> dict[str, list[dict[str, Any]]]:
    """`scores`: what each variant is like. `differences`: what it reaches on unseen probes, against the paper's
    score."""
    controls = dict(_controls(icon))
    scores = [
        {"control": control, "score": name, **_likeness(pairs, score)}
        for control, pairs in controls.items()
        for name, score in SCORES.items()
    ]
    return {"scores": scores, "differences": differences(controls)}


def _controls(icon: WorkspaceResource) -> Iterator[tuple[str, Pairs]]:
    store = icon.store
    key = icon.score_key()
    settings = icon.settings.controls
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
            1 - none[complete],
            control,
            np.array([length[i] for i in ids])[complete],
            probes["n_tokens"].to_numpy(),
            probes["stratum"].to_numpy(),
        )

    ratio = 1 - none[complete]
    yield "none", pairs(np.ones_like(ratio))
    if "random_tokens" in by_control:
        yield "random_tokens", pairs(by_control["random_tokens"][2][complete] + ratio)
    yield "peers", pairs(_peers(ratio, pairs(ratio).length))


def _peers(ratio: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What a typical sample of the length does to each probe."""
    return np.exp(typical(length, np.log(ratio), length))


def _likeness(pairs: Pairs, score: Score) -> dict[str, float]:
    """How much of a ranking is length, how much of it another half of the probes would keep, and how like the paper's
    it is."""
    probes = np.arange(pairs.ratio.shape[1])
    rng = np.random.default_rng(0)
    whole = score(pairs, probes)
    halves = [_reliability(pairs, score, *np.array_split(rng.permutation(probes), 2)) for _ in range(SPLITS)]
    return {
        "length_spearman": spearman(whole, pairs.length),
        "length_auc": _auc(whole, pairs.length),
        "overlap_with_paper": _overlap(whole, _paper(pairs, probes)),
        "reliability": float(np.mean([plain for plain, _ in halves])),
        "reliability_beyond_length": float(np.mean([beyond for _, beyond in halves])),
    }


def _reliability(pairs: Pairs, score: Score, half: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    a = score(pairs, half)
    b = score(pairs, other)
    return spearman(a, b), spearman(a - _expected(a, pairs.length), b - _expected(b, pairs.length))


def differences(controls: dict[str, Pairs], draws: int = DRAWS, seed: int = 0) -> list[dict[str, Any]]:
    """Every variant against the paper's score, measure by measure: the mean over splits of the probes into seen and
    unseen ones, an interval of 95 % that holds what other samples and other probes would change, and a verdict after
    Holm's correction over the variants."""
    rng = np.random.default_rng(seed)
    worth = _worth(controls["none"])
    weights = _weights(controls, rng)
    names = [(control, score) for control in controls for score in SCORES]
    paper = names.index(("none", PAPER))
    rows = []
    for measure, pairs in zip(MEASURES, worth, strict=True):
        found = [float((each * pairs).sum()) for each in weights]
        errors = [_error((each - weights[paper]) * pairs, draws, rng) for each in weights]
        away = [value - found[paper] for value in found]
        told = _holm(np.array([2 * norm.sf(abs(a) / e) if e else 1.0 for a, e in zip(away, errors, strict=True)]))
        for (control, score), value, difference, error, sure in zip(names, found, away, errors, told, strict=True):
            reach = norm.ppf(1 - LEVEL / 2) * error
            rows.append(
                {
                    "measure": measure,
                    "control": control,
                    "score": score,
                    "value": value,
                    "difference": difference,
                    "low": difference - reach,
                    "high": difference + reach,
                    "verdict": _verdict(difference, sure),
                }
            )
    return rows


def _worth(pairs: Pairs) -> np.ndarray:
    """[measures, samples, probes]: what each sample does for each probe against no context, over the mean sample and
    over those of its length."""
    gains = (-np.log(pairs.ratio), 1 - pairs.ratio)
    return np.array([g - over for g in gains for over in (g.mean(axis=0), typical(pairs.length, g, pairs.length))])


def _weights(controls: dict[str, Pairs], rng: np.random.Generator) -> np.ndarray:
    """[variants, samples, probes]: how much a pair counts, where a variant is worth what its best samples do for the
    probes that it was not ranked by. Each half of a split is the unseen one once."""
    n_samples, n_probes = controls["none"].ratio.shape
    weights = np.zeros((len(controls) * len(SCORES), n_samples, n_probes))
    for _ in range(SPLITS):
        half, other = np.array_split(rng.permutation(n_probes), 2)
        for seen, unseen in ((half, other), (other, half)):
            ranked = (score(pairs, seen) for pairs in controls.values() for score in SCORES.values())
            for variant, values in enumerate(ranked):
                best = _top(values)
                weights[variant][np.ix_(best, unseen)] += 1 / (2 * SPLITS * len(best) * len(unseen))
    return weights


def _error(parts: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """How far the sum over [samples, probes] moves with draws of both, with replacement; what each split has chosen is
    kept."""
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in parts.shape]
    return float(((counts[0] @ parts) * counts[1]).sum(axis=1).std(ddof=1))


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Which differences hold although so many were looked at: Holm's step-down."""
    order = np.argsort(p_values, kind="stable")
    told = np.zeros(len(p_values), bool)
    told[order] = np.logical_and.accumulate(p_values[order] <= LEVEL / np.arange(len(p_values), 0, -1))
    return told


def _verdict(difference: float, told: bool) -> str:
    return (BETTER if difference > 0 else WORSE) if told else OPEN


def _expected(values: np.ndarray, length: np.ndarray) -> np.ndarray:
    return typical(length, values[:, None], length)[:, 0]


def _top(values: np.ndarray) -> np.ndarray:
    return np.argsort(-values, kind="stable")[: round(FRACTION * len(values))]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return len(set(_top(a)) & set(_top(b))) / len(_top(a))


def _auc(score: np.ndarray, length: np.ndarray) -> float:
    """How well length separates the chosen from the others."""
    chosen = np.zeros(len(score), bool)
    chosen[_top(score)] = True
    return auc(length, chosen)
