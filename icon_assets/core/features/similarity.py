"""A filter for near-duplicates, by their embeddings.

Cosines are rounded, so that different chunk sizes do not change what is accepted.
"""

import numpy as np

_SIEVED_AT_ONCE = 512
_DECIMALS = 6


class Sieve:
    """Accepts a vector unless an accepted one is more similar than the limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._kept = list[np.ndarray]()

    def passes(self, vectors: np.ndarray) -> np.ndarray:
        """Which of these are accepted; earlier ones take precedence."""
        parts = range(0, len(vectors), _SIEVED_AT_ONCE)
        return np.concatenate([np.zeros(0, bool), *(self._pass(vectors[at : at + _SIEVED_AT_ONCE]) for at in parts)])

    def _pass(self, vectors: np.ndarray) -> np.ndarray:
        passes = np.ones(len(vectors), bool)
        for kept in self._kept:
            passes &= ~self._near(vectors, kept).any(axis=1)
        among = self._near(vectors, vectors)
        for place in range(len(vectors)):
            if passes[place]:
                passes[place + 1 :] &= ~among[place, place + 1 :]
        self._kept.append(vectors[passes])
        return passes

    def _near(self, vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.round(vectors @ others.T, _DECIMALS) > self._limit
