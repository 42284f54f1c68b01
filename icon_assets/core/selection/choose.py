"""The choice of an arm: how much of the top of its ranking is taken, the same for all arms, and what is stored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.features.similarity import Sieve
from icon_assets.core.passes.costs import total_cost
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selection.arm import arm_and_draw, rank, with_reference, work_owed
from icon_assets.core.selection.candidates import TOKENS, Candidates
from icon_assets.core.store.tables import Store
from icon_assets.settings import SelectionSettings

_SIEVED_AT_ONCE = 4_096


@dataclass(frozen=True)
class Subset:
    """The choice of one arm: `rows` has sample_id, rank (from 1), score (null where the arm has none) and reason.

    `skipped`: samples that were skipped because a better one is nearly the same.
    """

    arm: str
    subset_id: str
    rows: pl.DataFrame
    skipped: int = 0


def select(name: str, pool: Candidates) -> Subset:
    """Choose the arm's samples from the top of its ranking: `selection.fraction` of the samples or of the training
    tokens, all for `full`. With `selection.diversity`, samples that are nearly the same as a chosen one are skipped.

    Raises:
        IconError: the pool is empty, or the arm can rank less than it must take.
    """
    parts = list[pl.DataFrame]()
    for part in _parts(name, pool):
        parts.append(part)
        taken = pl.concat(parts)
        if due := _due(name, taken, pool):
            rows = taken.head(due).select("sample_id", "score").with_row_index("rank", offset=1)
            rows = rows.with_columns(pl.col("rank").cast(pl.Int64), reason=pl.lit(arm_and_draw(name)[0].description))
            return Subset(name, subset_id(name, rows["sample_id"].to_list()), rows, taken["place"][due - 1] + 1 - due)
    raise _too_few(name, sum(part.height for part in parts), pool)


def _parts(name: str, pool: Candidates) -> Iterator[pl.DataFrame]:
    """The ranking from its top with the place of each sample, without skipped samples."""
    ranking = rank(name, pool).with_row_index("place")
    limit = pool.settings.diversity
    if TOKENS in pool.samples.columns:
        ranking = ranking.join(pool.samples.select("sample_id", TOKENS), on="sample_id", maintain_order="left")
    if limit is None or name == "full":
        yield ranking
        return
    sieve = Sieve(limit)
    embeddings = pool.vectors()
    size = max(_SIEVED_AT_ONCE, math.ceil(pool.settings.fraction * pool.samples.height))
    for start in range(0, ranking.height, size):
        part = ranking[start : start + size]
        yield part.filter(pl.Series(sieve.passes(embeddings.of(part["sample_id"].to_list()))))


def _due(name: str, ranked: pl.DataFrame, pool: Candidates) -> int | None:
    """How many samples to take from the top; None when there are not enough."""
    if name == "full" or pool.settings.budget == "samples":
        size = subset_size(name, pool.samples.height, pool.settings.fraction)
        return size if ranked.height >= size else None
    budget = token_budget(pool)
    fit = int((ranked[TOKENS].cum_sum() <= budget).sum())
    # The next sample would exceed the budget; if none is left, everything fits.
    return max(1, fit) if fit < ranked.height or fit == pool.samples.height else None


def _too_few(name: str, left: int, pool: Candidates) -> IconError:
    needs = f"{subset_size(name, pool.samples.height, pool.settings.fraction)} samples"
    ranked = rank(name, pool).height
    if pool.settings.budget == "tokens" and name != "full":
        needs = f"{token_budget(pool):,.0f} training tokens"
    needs = f"arm {name}: needs {needs} of {pool.samples.height}, but"
    if ranked > left:
        return IconError(
            f"{needs} of the {ranked} it ranks {ranked - left} are too similar to a better one; raise "
            "selection.diversity or lower selection.fraction"
        )
    by = next((each for each in reversed(with_reference(name, pool.settings)) if each.control or each.tables), None)
    if by is None:
        return IconError(f"{needs} {ranked} are there; materialize raw_pool and sample_scores for every shard first")
    if by.control is None:
        tables = " and ".join(by.tables)
        return IconError(f"{needs} {ranked} have a row in {tables}; materialize {tables} for every shard first")
    return IconError(
        f"{needs} {ranked} have a score under control {by.control}; materialize raw_pool and sample_scores for every "
        "shard first; where scoring.direct_share is below 1, raise it or use the arm icon_selector"
    )


def token_budget(pool: Candidates) -> float:
    """Training tokens that an arm may take: the average of a random choice of the fraction."""
    return pool.settings.fraction * float(pool.samples[TOKENS].sum())


def subset_size(name: str, pool_samples: int, fraction: float) -> int:
    """How many of the pool's unique samples an arm takes."""
    # In decimal: 0.07 of 100 is 7, while the nearest binary number is slightly larger and would give 8.
    return pool_samples if name == "full" else math.ceil(Decimal(str(fraction)) * pool_samples)


def subset_id(name: str, sample_ids: Sequence[str]) -> str:
    """The id of a subset, from its arm and its samples, best first."""
    return digest([name, list(sample_ids)])


def token_figures(subset: Subset, pool: Candidates) -> dict[str, int | float]:
    """What the subset and the pool have in training, and what was allowed; nothing where samples are counted."""
    if TOKENS not in pool.samples.columns:
        return {}
    taken = subset.rows.join(pool.samples.select("sample_id", TOKENS), on="sample_id")
    return {
        "training_tokens": int(taken[TOKENS].sum()),
        "pool_training_tokens": int(pool.samples[TOKENS].sum()),
        "token_budget": token_budget(pool),
    }


def chosen_samples(store: Store, arm: str, subset_id: str) -> list[str]:
    """Sample ids of a subset, best first."""
    rows = store.query(
        'SELECT sample_id FROM selections WHERE arm = $arm AND subset_id = $subset ORDER BY "rank"',
        {"arm": arm, "subset": subset_id},
    )
    return rows["sample_id"].to_list()


def is_comparable(store: Store, name: str) -> bool:
    """Whether the newest subset of an arm, or of one of its draws, was chosen as the newest of all were."""
    return store.query("SELECT is_comparable FROM subsets WHERE arm = $arm", {"arm": name}).item()


def scoring_cost(store: Store, key: ScoreKey, name: str, settings: SelectionSettings) -> dict[str, Any]:
    """Which kinds of `scoring_costs` the arm owes, and what they have cost so far."""
    owes = work_owed(name, settings)
    tokens, seconds = total_cost(store, key.value, owes)
    return {"scoring_tokens": tokens, "scoring_seconds": round(seconds, 1), "owes": owes}
