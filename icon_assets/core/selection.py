"""Arms: each is one function that orders the pool by its own reason; the first `size` samples are its subset.

A further arm is one function here, registered by its name, and one line in the settings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from icon_assets.core.digests import digest, draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.store import Store, sql_text

Arm = Callable[[pl.DataFrame, int], pl.DataFrame]
_ARMS: dict[str, tuple[Arm, str | None, str]] = {}


@dataclass(frozen=True)
class Subset:
    """The choice of one arm: `rows` has sample_id, rank (from 1), score (null where the arm has none) and reason."""

    arm: str
    subset_id: str
    rows: pl.DataFrame


def arm(name: str, needs: str | None, description: str) -> Callable[[Arm], Arm]:
    """Register an arm. It gets the pool and the seed and returns sample_id and score, best first.

    Args:
        needs: the control whose contributions it ranks by, or None.
    """

    def register(function: Arm) -> Arm:
        _ARMS[name] = (function, needs, description)
        return function

    return register


@arm("full", None, "every sample of the pool")
def _full(pool: pl.DataFrame, seed: int) -> pl.DataFrame:
    return pool.sort("sample_id").select("sample_id", score=pl.lit(None, pl.Float64))


@arm("random", None, "drawn at random; the draw of a sample does not depend on the rest of the pool")
def _random(pool: pl.DataFrame, seed: int) -> pl.DataFrame:
    keys = pl.Series("key", [draw_key(seed, sample_id) for sample_id in pool["sample_id"]])
    return pool.with_columns(keys).sort("key").select("sample_id", score=pl.lit(None, pl.Float64))


@arm("longest", None, "longest response, in characters")
def _longest(pool: pl.DataFrame, seed: int) -> pl.DataFrame:
    score = pl.col("n_response_chars").cast(pl.Float64)
    return pool.select("sample_id", score=score).sort("score", "sample_id", descending=[True, False])


def _by_contribution(control: str, descending: bool = True) -> Arm:
    def order(pool: pl.DataFrame, seed: int) -> pl.DataFrame:
        scored = pool.select("sample_id", score=control).drop_nulls("score")
        return scored.sort("score", "sample_id", descending=[descending, False])

    return order


arm("icon", "none", "highest contribution against no context")(_by_contribution("none"))
arm("rico", "random_tokens", "highest contribution against random tokens")(_by_contribution("random_tokens"))
arm("rico_chars", "random_chars", "highest contribution against random characters")(_by_contribution("random_chars"))
arm("lowest", "none", "lowest contribution against no context")(_by_contribution("none", descending=False))


def check_arms(arms: tuple[str, ...], controls: tuple[str, ...]) -> None:
    """Refuse arms that don't exist, or that rank by a control nobody computes.

    Raises:
        IconError: names the arm and the setting to change.
    """
    for name in arms:
        if name not in _ARMS:
            raise IconError(f"selection.arms: {name!r} is not an arm; known are {', '.join(sorted(_ARMS))}")
        needs = _ARMS[name][1]
        if needs is not None and needs not in controls:
            raise IconError(f"selection.arms: {name!r} ranks by control {needs!r}; add it to controls.kinds")


def ranks_by_score(name: str) -> bool:
    """Whether the arm ranks by contributions, so that it owes what scoring cost."""
    return _ARMS[name][1] is not None


def read_pool(store: Store, score_key: str) -> pl.DataFrame:
    """The unique samples of the pool, with lengths and one column of contributions per control."""
    return store.query(sql_text("pool_scores.sql"), {"score_key": score_key})


def select(name: str, pool: pl.DataFrame, fraction: float, seed: int) -> Subset:
    """Choose the arm's samples: `ceil(fraction * samples)` of them, all for `full`.

    Raises:
        IconError: the pool is empty, or fewer samples are scored than the arm must take.
    """
    size = subset_size(name, pool.height, fraction)
    function, needs, reason = _ARMS[name]
    ordered = function(pool, seed).head(size)
    if not size or ordered.height < size:
        raise IconError(
            f"arm {name}: needs {size} samples of {pool.height}, but {ordered.height} have a score under control "
            f"{needs}; materialize raw_pool and sample_scores for every shard first"
        )
    rows = ordered.with_row_index("rank", offset=1).with_columns(pl.col("rank").cast(pl.Int64), reason=pl.lit(reason))
    return Subset(name, subset_id(name, rows["sample_id"].to_list()), rows)


def subset_size(name: str, pool_samples: int, fraction: float) -> int:
    """How many of the pool's unique samples an arm takes."""
    return pool_samples if name == "full" else math.ceil(fraction * pool_samples)


def subset_id(name: str, sample_ids: Sequence[str]) -> str:
    """The name of a subset: its arm and its samples, best first."""
    return digest([name, list(sample_ids)])


def ranks_by(name: str) -> str | None:
    """The control whose contributions an arm ranks by, if any."""
    return _ARMS[name][1]
