"""Probes, or strata of probes, that choose samples in turn. A mean over probes of several kinds chooses for the kind
with the largest values. In turn, every kind gets its share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def take_in_turn(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In each round, every column takes its best sample that is not taken yet. Equal values go by the order of the
    rows. A column without a value for any remaining sample takes no more.

    Args:
        values: [samples, columns], higher is better; NaN where it is not known.

    Returns:
        Rows in the order in which they are taken, and the column that took each. Rows without any value are left out.
    """
    lists: list[Any] = [memoryview(_best_first(column).data) for column in values.T]  # quicker to read than arrays
    left = int((~np.isnan(values)).any(axis=1).sum())
    taken = bytearray(len(values))
    places = [0] * len(lists)
    rows = list[int]()
    takers = list[int]()
    while len(rows) < left:
        for taker, best in enumerate(lists):
            place = places[taker]
            while place < len(best) and taken[best[place]]:
                place += 1
            places[taker] = place
            if place < len(best):
                taken[best[place]] = 1
                rows.append(best[place])
                takers.append(taker)
    return np.array(rows, np.int64), np.array(takers, np.int64)


def name_in_turn(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, except that a column skips its turn if its next best sample is already taken (RDS+, arXiv
    2503.01807). So columns that agree take fewer samples."""
    n_columns = values.shape[1]
    turn = np.full(len(values), np.iinfo(np.int64).max)
    taker = np.zeros(len(values), np.int64)
    for number, column in enumerate(values.T):
        best = _best_first(column)
        turns = np.arange(len(best)) * n_columns + number
        earlier = turns < turn[best]
        turn[best[earlier]] = turns[earlier]
        taker[best[earlier]] = number
    order = np.argsort(turn, kind="stable")[: int((~np.isnan(values)).any(axis=1).sum())]
    return order, taker[order]


def _best_first(column: np.ndarray) -> np.ndarray:
    known = int((~np.isnan(column)).sum())
    return np.argsort(-column, kind="stable")[:known].astype(np.int64)  # NaN comes last


def shares(values: np.ndarray) -> np.ndarray:
    """The place of each sample in the ranking of each column, from 1 (best) down to near 0; NaN stays NaN. Equal values
    share a place.

    Rankings of different units, such as nats and cosines, can be averaged in this form.
    """
    from scipy import stats

    known = (~np.isnan(values)).sum(axis=0)
    return stats.rankdata(values, axis=0, nan_policy="omit") / np.maximum(known, 1)


def by_stratum(values: np.ndarray, strata: Sequence[str]) -> np.ndarray:
    """The mean over the known probes of each stratum, [samples, strata], by the strata's names."""
    names = sorted(set(strata))
    columns = [values[:, [at for at, each in enumerate(strata) if each == name]] for name in names]
    return np.column_stack([_mean(column) for column in columns])


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.divide(
        np.where(known, values, 0).sum(axis=1),
        known.sum(axis=1),
        out=np.full(len(values), np.nan),
        where=known.any(axis=1),
    )
