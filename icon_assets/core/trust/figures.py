"""How far to trust a selection: how much of it has a simpler explanation, and how much of it a redraw would keep.

This module computes figures only. Arms and their choices are defined elsewhere. Each figure comes with the value to
compare it with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from icon_assets.core.features.similarity import Sieve
from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.inputs.strata import pool_strata
from icon_assets.core.passes.encoder import pool_rows
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.probes.overlap import Candidate, near_duplicates
from icon_assets.core.selection.arm import rank
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.store.tables import Store
from icon_assets.core.trust.redraws import Figure, nestedness, redrawn
from icon_assets.core.trust.warnings import Z_95
from icon_assets.settings import Settings

_READ_TEXTS = 2_000
_COMPARED_VECTORS = 20_000
_NEAR_COSINE = 0.95
_COMPARABLE = 10  # samples on either side; fewer can't be distinguished from chance
_SHOWN_STRATA = 20


@dataclass(frozen=True)
class Choice:
    """The input: one arm's current subset, best first, and the current subsets of the other arms by arm."""

    arm: str
    sample_ids: Sequence[str]
    others: dict[str, set[str]]


def trust_figures(store: Store, key: ScoreKey, settings: Settings, pool: Candidates, chosen: Choice) -> pl.DataFrame:
    """All figures of one selection, as rows of the table `trust_figures` without subset_id."""
    figures = [
        *length_figures(chosen, pool),
        *nestedness(chosen.arm, pool),
        *redrawn(store, key, settings, chosen.arm, pool),
        *stratum_shares(pool_strata(store), chosen.sample_ids),
        *_repeats(store, settings, chosen, pool),
        *arm_overlaps(chosen, pool.samples.height),
    ]
    schema = {
        name: pl.Float64 if name in ("value", "low", "high") else pl.String for name in Figure.__dataclass_fields__
    }
    return pl.DataFrame([vars(each) for each in figures], schema=schema).with_columns(arm=pl.lit(chosen.arm))


# Length


def auc(values: np.ndarray, chosen: np.ndarray) -> float:
    """How often the value of a chosen sample is above that of a sample that was not chosen. Ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(chosen, values))


def auc_error(value: float, n_chosen: int, n_rest: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982)."""
    both_above = value / (2 - value)
    above_both = 2 * value**2 / (1 + value)
    spread = (n_chosen - 1) * (both_above - value**2) + (n_rest - 1) * (above_both - value**2)
    return math.sqrt(max(0.0, value * (1 - value) + spread) / (n_chosen * n_rest))


def length_figures(chosen: Choice, pool: Candidates) -> list[Figure]:
    """How much length alone explains: the choice of samples, and the ranking of the whole pool."""
    samples = pool.samples
    inside = samples["sample_id"].is_in(list(chosen.sample_ids)).to_numpy()
    figures = []
    if min(inside.sum(), (~inside).sum()) >= _COMPARABLE:
        for against, column in (("tokens", "n_tokens"), ("response characters", "n_response_chars")):
            value = auc(samples[column].to_numpy(), inside)
            error = Z_95 * auc_error(value, int(inside.sum()), int((~inside).sum()))
            detail = "chosen samples are longer above 0.5, shorter below it"
            figures.append(Figure("length_auc", against, value, max(0, value - error), min(1, value + error), detail))
    return figures + length_correlation(chosen.arm, pool)


def length_correlation(arm: str, pool: Candidates) -> list[Figure]:
    """Spearman correlation of an arm's ranking with token length, positive where longer samples rank first."""
    ranking = rank(arm, pool).join(pool.samples.select("sample_id", "n_tokens"), on="sample_id", maintain_order="left")
    value = spearman(-np.arange(ranking.height), ranking["n_tokens"].to_numpy())
    if arm == "full" or not math.isfinite(value):
        return []
    error = Z_95 * math.sqrt(1.06 / (ranking.height - 3)) if ranking.height > 3 else math.inf
    low, high = (math.tanh(math.atanh(min(max(value, -0.9999), 0.9999)) + side * error) for side in (-1, 1))
    return [Figure("length_spearman", "tokens", value, low, high, f"rank correlation over {ranking.height:,} samples")]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; NaN where one of them is constant."""
    from scipy import stats

    if not len(one) or not np.ptp(one) or not np.ptp(other):
        return math.nan
    return float(stats.spearmanr(one, other).statistic)  # pyright: ignore[reportAttributeAccessIssue]


# Composition


def stratum_shares(strata: pl.DataFrame, sample_ids: Sequence[str]) -> list[Figure]:
    """The share of each stratum among the chosen samples, with its range for a random choice of the same size."""
    counts = strata.group_by("stratum").agg(n=pl.len()).sort("n", "stratum", descending=[True, False])
    shown = counts["stratum"].head(_SHOWN_STRATA)
    named = strata.with_columns(
        stratum=pl.when(pl.col("stratum").is_in(shown.to_list())).then("stratum").otherwise(pl.lit("(others)"))
    )
    inside = pl.col("sample_id").is_in(list(sample_ids))
    groups = named.group_by("stratum").agg(n=pl.len(), k=inside.sum()).sort("n", "stratum", descending=[True, False])
    total = strata.height
    taken = max(1, len(sample_ids))
    figures = []
    for stratum, n, k in groups.iter_rows():
        share = n / total
        error = Z_95 * math.sqrt(share * (1 - share) / taken * max(0, total - taken) / max(1, total - 1))
        figures.append(
            Figure(
                "stratum_share", stratum, k / taken, max(0, share - error), share + error, f"{share:.3f} of the pool"
            )
        )
    return figures


def _repeats(store: Store, settings: Settings, chosen: Choice, pool: Candidates) -> list[Figure]:
    """The share of the chosen samples that nearly repeat a better one, by words, and by embeddings where there are
    any."""
    read = list(chosen.sample_ids[:_READ_TEXTS])
    limit = settings.probes.near_duplicate
    rows = {row["sample_id"]: row for row in pool_rows(store, read)}
    texts = [Candidate(sample_of(rows[each]), "", rows[each]["file"], rows[each]["row"]) for each in read]
    detail = f"of the first {len(read):,}; {limit:.0%} of their word triples in common"
    figures = [Figure("near_duplicates", "words", len(near_duplicates(texts, limit)) / len(read), detail=detail)]
    compared = list(chosen.sample_ids[:_COMPARED_VECTORS])
    if pool.embeddings is not None and pool.embeddings.has(compared):
        nearest = settings.selection.diversity or _NEAR_COSINE
        passes = Sieve(nearest).passes(pool.embeddings.of(compared))
        detail = f"of the first {len(compared):,}; cosine of embeddings above {nearest}"
        figures.append(Figure("near_duplicates", "embeddings", float(1 - passes.mean()), detail=detail))
    return figures


def arm_overlaps(chosen: Choice, pool_samples: int) -> list[Figure]:
    """The share of this selection that each other arm has also chosen."""
    own = set(chosen.sample_ids)
    return [
        Figure("arm_overlap", arm, len(own & other) / len(own), detail=f"by chance {len(other) / pool_samples:.3f}")
        for arm, other in sorted(chosen.others.items())
    ]
