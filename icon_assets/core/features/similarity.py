"""Embeddings compared in chunks: probes that name samples in turn, and a filter for near-duplicates.

Cosines are rounded, so that different chunk sizes do not change the rank of equal samples.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from icon_assets.core.features.embeddings import Embeddings

_PROBES_AT_ONCE = 128
_SIEVED_AT_ONCE = 512
_DECIMALS = 6


def round_robin(embeddings: Embeddings) -> pl.DataFrame:
    """Samples in the order in which the probes name them. In turn, each probe names its next most similar sample, and
    skips its turn if that one is already named (RDS+, arXiv 2503.01807).

    Returns:
        sample_id, and as score the cosine to the probe that named it.
    """
    probes = embeddings.probes()
    sample_ids = np.array(sorted({sample_id for ids, _ in embeddings.chunks() for sample_id in ids}), dtype=np.bytes_)
    turn = np.full(len(sample_ids), np.iinfo(np.int64).max)
    score = np.zeros(len(sample_ids), np.float32)
    for start in range(0, len(probes), _PROBES_AT_ONCE):
        cosines = _cosines(embeddings, sample_ids, probes[start : start + _PROBES_AT_ONCE])
        for offset, column in enumerate(cosines):
            named = _places(column) * len(probes) + start + offset
            earlier = named < turn
            turn[earlier] = named[earlier]
            score[earlier] = column[earlier]
    order = np.argsort(turn)
    return pl.DataFrame({"sample_id": sample_ids[order].astype(str), "score": score[order].astype(float)})


def _places(cosines: np.ndarray) -> np.ndarray:
    """When a probe names each sample, from 0: the most similar first."""
    places = np.empty(len(cosines), np.int64)
    places[np.argsort(-cosines, kind="stable")] = np.arange(len(cosines))
    return places


class Rounds:
    """The same for a few samples and for any of the probes. The similarities are computed once."""

    def __init__(self, embeddings: Embeddings, sample_ids: Sequence[str]) -> None:
        cosines = np.round(embeddings.probes() @ embeddings.of(sample_ids).T, _DECIMALS)
        self.places = np.stack([_places(column) for column in cosines])

    def order(self, probes: np.ndarray) -> np.ndarray:
        """The samples, by their number, in the order in which these probes name them."""
        turns = self.places[probes] * len(probes) + np.arange(len(probes))[:, None]
        return np.argsort(turns.min(axis=0))


def _cosines(embeddings: Embeddings, sample_ids: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """[probes, samples], the samples in the order of `sample_ids`, which is sorted."""
    cosines = np.zeros((len(probes), len(sample_ids)), np.float32)
    for ids, vectors in embeddings.chunks():
        places = np.searchsorted(sample_ids, np.array(ids, dtype=np.bytes_))
        cosines[:, places] = np.round(probes @ vectors.T, _DECIMALS)
    return cosines


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
