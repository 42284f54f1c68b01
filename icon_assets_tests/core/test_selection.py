"""Arms."""

import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.selection import check_arms, select

POOL = pl.DataFrame(
    {
        "sample_id": [f"s{i:02}" for i in range(20)],
        "n_response_chars": [(i * 7) % 20 for i in range(20)],
        "n_context_tokens": [10] * 20,
        "none": [((i * 3) % 20) / 10 - 1 for i in range(20)],
        "random_tokens": [((i * 11) % 20) / 10 - 1 for i in range(20)],
        "random_chars": [None] * 20,
    },
    schema_overrides={"random_chars": pl.Float64},
)


@pytest.mark.parametrize("arm", ["random", "icon", "rico", "longest", "lowest"])
def test_an_arm_takes_its_share_once_each_best_first(arm: str) -> None:
    rows = select(arm, POOL, 0.15, 0).rows
    assert rows["rank"].to_list() == [1, 2, 3]
    assert rows["sample_id"].n_unique() == 3
    assert rows["reason"].null_count() == 0


@pytest.mark.parametrize("arm", ["random", "icon", "rico", "longest", "lowest"])
def test_a_larger_fraction_contains_the_smaller_one(arm: str) -> None:
    small, large = (select(arm, POOL, fraction, 0).rows["sample_id"].to_list() for fraction in (0.1, 0.5))
    assert large[: len(small)] == small


def test_full_takes_everything_whatever_the_fraction() -> None:
    assert select("full", POOL, 0.15, 0).rows.height == 20


def test_icon_takes_the_highest_and_lowest_the_lowest_contributions() -> None:
    best, worst = (select(arm, POOL, 0.25, 0).rows["score"].to_list() for arm in ("icon", "lowest"))
    assert best == sorted(POOL["none"], reverse=True)[:5]
    assert worst == sorted(POOL["none"])[:5]


def test_random_depends_on_the_seed_and_survives_growth_of_the_pool() -> None:
    chosen = select("random", POOL, 0.5, 0).rows["sample_id"].to_list()
    assert chosen != select("random", POOL, 0.5, 1).rows["sample_id"].to_list()
    grown = pl.concat([POOL, POOL.with_columns(sample_id=pl.lit("new") + pl.col("sample_id"))])
    kept = [s for s in select("random", grown, 1, 0).rows["sample_id"] if s in chosen]
    assert kept == chosen


def test_equal_choices_have_equal_ids_and_different_ones_different() -> None:
    ids = [
        select(*args).subset_id
        for args in (("icon", POOL, 0.5, 0), ("icon", POOL[::-1], 0.5, 9), ("icon", POOL, 0.4, 0))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_an_arm_whose_scores_are_missing_says_what_to_do() -> None:
    with pytest.raises(IconError, match="arm rico_chars: needs 10 samples of 20, but 0 have a score"):
        select("rico_chars", POOL, 0.5, 0)
    with pytest.raises(IconError, match="materialize raw_pool"):
        select("full", POOL.clear(), 0.5, 0)


def test_arms_of_the_settings_are_checked_before_anything_runs() -> None:
    check_arms(("full", "rico"), ("none", "random_tokens"))
    with pytest.raises(IconError, match="'best' is not an arm"):
        check_arms(("best",), ("none",))
    with pytest.raises(IconError, match=r"add it to controls\.kinds"):
        check_arms(("rico",), ("none",))
