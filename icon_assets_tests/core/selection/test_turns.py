"""Choosing in turn, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from icon_assets.core.selection.turns import by_stratum, name_in_turn, shares, take_in_turn

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 5))
VALUES = arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")]))


def best_first(column: np.ndarray) -> list[int]:
    known = [row for row in range(len(column)) if not np.isnan(column[row])]
    return sorted(known, key=lambda row: (-column[row], row))


def taken_plainly(values: np.ndarray) -> list[tuple[int, int]]:
    """The definition: in each round, each column takes its best row that is not taken yet."""
    lists = [best_first(column) for column in values.T]
    taken: list[tuple[int, int]] = []
    while True:
        before = len(taken)
        for column, best in enumerate(lists):
            rows = {row for row, _ in taken}
            taken += [(next(row for row in best if row not in rows), column)] if set(best) - rows else []
        if len(taken) == before:
            return taken


def named_plainly(values: np.ndarray) -> list[tuple[int, int]]:
    """The definition: in round n, each column names its nth best row, and passes when that is named already."""
    lists = [best_first(column) for column in values.T]
    named: dict[int, int] = {}
    for turn in range(len(values)):
        for column, best in enumerate(lists):
            if turn < len(best):
                named.setdefault(best[turn], column)
    return list(named.items())


@given(VALUES)
def test_each_column_takes_the_best_that_is_left(values: np.ndarray) -> None:
    rows, takers = take_in_turn(values)
    assert list(zip(rows, takers, strict=True)) == taken_plainly(values)


@given(VALUES)
def test_a_column_whose_next_best_is_named_skips_its_turn(values: np.ndarray) -> None:
    rows, takers = name_in_turn(values)
    assert list(zip(rows, takers, strict=True)) == named_plainly(values)


@given(VALUES)
def test_every_row_with_a_value_is_there_once(values: np.ndarray) -> None:
    known = np.flatnonzero((~np.isnan(values)).any(axis=1)).tolist()
    assert sorted(take_in_turn(values)[0]) == sorted(name_in_turn(values)[0]) == known


def test_a_family_with_large_values_does_not_take_everything() -> None:
    """Ten rows help probe 0 a lot, ten help probe 1 a little: the mean takes the first ten, turns take both alike."""
    values = np.zeros((20, 2))
    values[:10, 0] = np.linspace(9, 5, 10)
    values[10:, 1] = np.linspace(0.2, 0.1, 10)
    assert set(np.argsort(-values.mean(axis=1))[:10]) == set(range(10))
    assert sum(row < 10 for row in take_in_turn(values)[0][:10]) == 5


def test_shares_compare_rankings_of_different_units() -> None:
    values = np.array([[3.0, 0.1], [2.0, 0.3], [2.0, np.nan], [1.0, 0.2]])
    expected = np.array([[1.0, 1 / 3], [0.625, 1.0], [0.625, np.nan], [0.25, 2 / 3]])
    assert shares(values) == pytest.approx(expected, nan_ok=True)
    assert shares(values * 1000) == pytest.approx(expected, nan_ok=True)


def test_a_stratum_has_the_mean_of_its_known_probes() -> None:
    values = np.array([[1.0, 2.0, 4.0], [np.nan, 3.0, 5.0], [np.nan, 6.0, np.nan]])
    expected = np.array([[2.0, 2.5], [3.0, 5.0], [6.0, np.nan]])
    assert by_stratum(values, ["b", "a", "b"]) == pytest.approx(expected, nan_ok=True)
