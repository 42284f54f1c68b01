"""Budgeted scoring: which samples need more probes when only the best ones are wanted (successive elimination).

All samples start with the same few probes. After each rung, a sample whose confidence interval does not contain the cut
(the score of the last sample of the wanted top fraction) is finished. The others get the next probes, nearest to the
cut first, until the budget is spent. This module computes no scores and accesses no store."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import NormalDist

import polars as pl

from icon_assets.settings import ControlKind, Settings

_GROWTH = 1.5
_LEAST_PILOT = 24
_MOST_PILOT = 384


@dataclass(frozen=True)
class Budget:
    """How much may be computed, and its purpose.

    Attributes:
        share: share of the tokens that scoring every sample on every probe would take. The pilot and the first rung are
            always computed.
        fraction: the top share of the pool that is wanted.
        control: the control whose contribution decides.
        error_rate: how often a sample may be stopped on the wrong side of the cut, over all rungs. It follows from
            normal theory, with the standard errors that the estimates were found to have.
        pilot: number of randomly drawn samples that get every probe, to learn how probes are correlated.
        seed: seed of that draw.
    """

    share: float
    fraction: float
    control: ControlKind
    error_rate: float
    pilot: int
    seed: int

    def critical_value(self, n_rungs: int) -> float:
        """Distance from the cut, in standard errors, at which a sample is decided. The error rate is split evenly over
        the rungs."""
        return NormalDist().inv_cdf(1 - self.error_rate / (2 * max(1, n_rungs - 1)))


def budget_of(settings: Settings, n_samples: int, n_probes: int) -> Budget | None:
    """The budget for a pool of this size, or None for exact scoring."""
    wanted = settings.probes.budget
    pairs = n_samples * n_probes
    if wanted == "exact" or (wanted == "auto" and pairs <= settings.probes.exact_pairs):
        return None
    share = 1 / 3 if wanted == "auto" else wanted
    return Budget(
        share,
        settings.selection.fraction,
        settings.controls.primary,
        settings.probes.error_rate,
        pilot_size(n_samples),
        settings.probes.seed,
    )


def pilot_size(n_samples: int) -> int:
    """24, 48, 96, ... samples, about 2 % of the pool. It grows in steps, so that growth of the pool seldom changes
    it."""
    size = _LEAST_PILOT
    while size < _MOST_PILOT and size * 100 <= n_samples:
        size *= 2
    return size


def rungs(n_probes: int, share: float) -> list[int]:
    """The number of probes of a sample after each rung. The first rung takes about a quarter of the budget."""
    sizes = [min(n_probes, max(8, ceil(0.28 * share * n_probes)))]
    while sizes[-1] < n_probes:
        sizes.append(min(n_probes, ceil(_GROWTH * sizes[-1])))
    return sizes


def cut(scores: pl.Series, weights: pl.Series, fraction: float) -> float:
    """The cut: halfway between the score of the last sample of the top fraction and the next one. A weight is a number
    of samples."""
    ranked = (
        pl.DataFrame({"score": scores, "weight": weights}).filter(pl.col("weight") > 0).sort("score", descending=True)
    )
    wanted = ceil(fraction * float(ranked["weight"].sum()) - 1e-9)
    last = min(int((ranked["weight"].cum_sum() < wanted - 1e-9).sum()), ranked.height - 1)
    return float(ranked["score"][last] + ranked["score"][min(last + 1, ranked.height - 1)]) / 2


def undecided(estimates: pl.DataFrame, at: float, critical_value: float) -> list[str]:
    """Samples whose confidence interval contains the cut, the nearest ones (in standard errors) first.

    Args:
        estimates: columns sample_id, contribution, standard_error.
        at: the cut.
    """
    distance = (pl.col("contribution") - at).abs() / pl.col("standard_error")
    near = estimates.filter(pl.col("standard_error") > 0).with_columns(distance=distance)
    return near.filter(pl.col("distance") < critical_value).sort("distance", "sample_id")["sample_id"].to_list()


def affordable(wanted: Sequence[str], costs: Sequence[int], allowance: int) -> list[str]:
    """The longest prefix of `wanted` whose costs fit into the allowance."""
    taken = []
    left = allowance
    for sample_id, cost in zip(wanted, costs, strict=True):
        if cost > left:
            break
        taken.append(sample_id)
        left -= cost
    return taken
