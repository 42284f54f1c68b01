"""Embeddings of samples and probes, compared in chunks: the vectors of a large pool never lie in memory together.

Cosines are rounded, so that a product that was cut into other chunks does not rank equal samples another way.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.store.tables import Store

_CHUNK_ROWS = 16_384
_PROBES_AT_ONCE = 128
_SIEVED_AT_ONCE = 512
_DECIMALS = 6


@dataclass(frozen=True)
class Embeddings:
    """The embeddings that one store holds under a score_key, each of length 1 once read."""

    store: Store
    score_key: str

    def probes(self) -> np.ndarray:
        """[probes, dimensions], by probe id.

        Raises:
            IconError: there are none.
        """
        rows = self.store.query(
            "SELECT embedding FROM probe_features SEMI JOIN probes USING (probe_id) WHERE score_key = $key ORDER BY probe_id",
            {"key": self.score_key},
        )
        if rows.is_empty():
            raise IconError("probe_features: no embedding of any probe; materialize probe_features first")
        return _unit(rows["embedding"])

    def chunks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """The pool's samples with their vectors, a few thousand at a time."""
        with closing(self.store.connect()) as con:
            rows = con.sql(
                "SELECT sample_id, embedding FROM sample_features SEMI JOIN delta.pool USING (sample_id) WHERE score_key = $key",
                params={"key": self.score_key},
            )
            for batch in rows.to_arrow_reader(_CHUNK_ROWS):
                frame: Any = pl.from_arrow(batch)
                yield frame["sample_id"].to_list(), _unit(frame["embedding"])

    def has(self, sample_ids: Sequence[str]) -> bool:
        """Whether every one of these samples has a vector."""
        (n,) = self.store.query(
            """
            SELECT count(DISTINCT sample_id) FROM sample_features
            WHERE score_key = $key AND sample_id IN (SELECT unnest($ids::VARCHAR[]))
            """,
            {"key": self.score_key, "ids": list(sample_ids)},
        ).row(0)
        return n == len(sample_ids)

    def held(self, sample_ids: Sequence[str]) -> "Held":
        """The same for these samples, read once."""
        return Held(self.store, self.score_key, dict(zip(sample_ids, self.of(sample_ids), strict=True)))

    def of(self, sample_ids: Sequence[str]) -> np.ndarray:
        """The vectors of these samples, in their order.

        Raises:
            IconError: some have none.
        """
        rows = self.store.query(
            """
            SELECT DISTINCT ON (sample_id) sample_id, embedding FROM sample_features
            WHERE score_key = $key AND sample_id IN (SELECT unnest($ids::VARCHAR[]))
            """,
            {"key": self.score_key, "ids": list(sample_ids)},
        )
        if rows.height < len(sample_ids):
            raise IconError(
                f"sample_features: {len(sample_ids) - rows.height} of {len(sample_ids)} samples have no embedding; "
                "materialize sample_features for every shard first"
            )
        order = pl.DataFrame({"sample_id": list(sample_ids)})
        return _unit(order.join(rows, on="sample_id", how="left", maintain_order="left")["embedding"])


@dataclass(frozen=True)
class Held(Embeddings):
    """Embeddings of some samples that lie in memory, because they are asked for again and again."""

    vectors: dict[str, np.ndarray]

    def of(self, sample_ids: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[each] for each in sample_ids])


def _unit(column: pl.Series) -> np.ndarray:
    vectors = column.explode().to_numpy().reshape(len(column), -1).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def round_robin(embeddings: Embeddings) -> pl.DataFrame:
    """Samples in the order in which the probes name them: in turn each probe names the next most similar one, and passes
    if that one has been named already (RDS+, arXiv 2503.01807).

    Returns:
        sample_id, and as score the cosine to the probe that named it.
    """
    probes = embeddings.probes()
    sample_ids = np.array(sorted({sample_id for ids, _ in embeddings.chunks() for sample_id in ids}), dtype=np.bytes_)
    turn, score = np.full(len(sample_ids), np.iinfo(np.int64).max), np.zeros(len(sample_ids), np.float32)
    for start in range(0, len(probes), _PROBES_AT_ONCE):
        cosines = _cosines(embeddings, sample_ids, probes[start : start + _PROBES_AT_ONCE])
        for offset, column in enumerate(cosines):
            named = _places(column) * len(probes) + start + offset
            earlier = named < turn
            turn[earlier], score[earlier] = named[earlier], column[earlier]
    order = np.argsort(turn)
    return pl.DataFrame({"sample_id": sample_ids[order].astype(str), "score": score[order].astype(float)})


def _places(cosines: np.ndarray) -> np.ndarray:
    """When a probe names each sample, from 0: the most similar first."""
    places = np.empty(len(cosines), np.int64)
    places[np.argsort(-cosines, kind="stable")] = np.arange(len(cosines))
    return places


class Rounds:
    """The same for a few samples and for any of the probes: what each probe thinks of them is looked up once."""

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
    """Lets a vector through unless one that it let through before is nearer than the limit."""

    def __init__(self, limit: float) -> None:
        self._limit, self._kept = limit, list[np.ndarray]()

    def passes(self, vectors: np.ndarray) -> np.ndarray:
        """Which of these pass, the first ones first."""
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
