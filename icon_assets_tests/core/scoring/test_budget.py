"""Budgeted scoring, the arithmetic: rungs, the cut, who goes on."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.scoring.budget import affordable, budget_of, cut, pilot_size, rungs, undecided
from icon_assets.settings import Settings


@given(st.integers(1, 2000), st.floats(0.01, 0.99))
def test_rungs_grow_to_all_probes_and_start_within_the_budget(n_probes: int, share: float) -> None:
    sizes = rungs(n_probes, share)
    assert sizes[-1] == n_probes
    assert sizes == sorted(set(sizes))
    assert sizes[0] <= 8 or sizes[0] <= share * n_probes / 2 + 1


def test_the_cut_lies_between_the_last_that_is_wanted_and_the_next() -> None:
    scores = pl.Series([4.0, 1.0, 3.0, 2.0])
    ones = pl.Series([1.0] * 4)
    assert cut(scores, ones, 0.5) == 2.5
    assert cut(scores, ones, 1.0) == 1.0
    assert cut(pl.Series([7.0]), pl.Series([1.0]), 0.15) == 7.0


def test_a_score_that_stands_for_several_samples_moves_the_cut() -> None:
    assert cut(pl.Series([4.0, 3.0, 2.0, 1.0]), pl.Series([1.0, 1.0, 1.0, 5.0]), 0.5) == 1.0
    assert cut(pl.Series([9.0, 4.0, 3.0, 2.0]), pl.Series([5.0, 1.0, 1.0, 1.0]), 0.5) == 6.5
    assert cut(pl.Series([9.0, 4.0, 3.0]), pl.Series([0.0, 1.0, 1.0]), 0.5) == 3.5


def test_only_samples_whose_interval_holds_the_cut_go_on_nearest_first() -> None:
    estimates = pl.DataFrame(
        {
            "sample_id": ["clear above", "near", "complete", "nearest", "clear below"],
            "contribution": [2.0, 1.3, 1.0, 0.9, 0.0],
            "standard_error": [0.2, 0.2, 0.0, 0.2, 0.2],
        }
    )
    assert undecided(estimates, 1.0, 2.0) == ["nearest", "near"]


def test_the_allowance_is_never_exceeded() -> None:
    assert affordable(["a", "b", "c"], [4, 4, 4], 8) == ["a", "b"]
    assert affordable(["a", "b", "c"], [4, 4, 4], 3) == []
    assert affordable([], [], 3) == []


def test_the_pilot_grows_with_the_pool_in_steps() -> None:
    assert [pilot_size(n) for n in (10, 2399, 2400, 10_000, 10_000_000)] == [24, 24, 48, 192, 384]


def test_a_small_pool_is_scored_exactly_and_a_large_one_by_a_third() -> None:
    settings = Settings()
    assert budget_of(settings, 1000, 48) is None
    large = budget_of(settings, 1_000_000, 48)
    assert large is not None
    assert large.share == pytest.approx(1 / 3)
    exact = settings.model_copy(update={"probes": settings.probes.model_copy(update={"budget": "exact"})})
    assert budget_of(exact, 1_000_000, 48) is None
