"""Embeddings of samples and probes from one store, read in chunks. The vectors of a large pool are never in memory
together.
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
_DECIMALS = 6


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one store under a score_key, normalized to length 1 when read."""

    store: Store
    score_key: str

    def probes(self) -> np.ndarray:
        """[probes, dimensions], by probe id.

        Raises:
            IconError: there are none.
        """
        rows = self.store.query(
            "SELECT embedding FROM probe_features SEMI JOIN probes USING (probe_id) WHERE score_key = $key "
            "ORDER BY probe_id",
            {"key": self.score_key},
        )
        if rows.is_empty():
            raise IconError("probe_features: no embedding of any probe; materialize probe_features first")
        return _unit(rows["embedding"])

    def chunks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """The pool's samples with their vectors, a few thousand at a time."""
        with closing(self.store.connect()) as con:
            rows = con.sql(
                "SELECT sample_id, embedding FROM sample_features SEMI JOIN delta.pool USING (sample_id) "
                "WHERE score_key = $key",
                params={"key": self.score_key},
            )
            for batch in rows.to_arrow_reader(_CHUNK_ROWS):
                frame: Any = pl.from_arrow(batch)
                yield frame["sample_id"].to_list(), _unit(frame["embedding"])

    def cosines(self, sample_ids: Sequence[str]) -> np.ndarray:
        """[samples, probes], rounded, so that equal samples are equal whatever the chunks; NaN for samples without an
        embedding.

        Args:
            sample_ids: sorted.
        """
        probes = self.probes()
        ids = np.array(sample_ids, dtype=np.bytes_)
        cosines = np.full((len(ids), len(probes)), np.nan, np.float32)
        for names, vectors in self.chunks():
            cosines[np.searchsorted(ids, np.array(names, dtype=np.bytes_))] = np.round(vectors @ probes.T, _DECIMALS)
        return cosines

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
    """Embeddings of some samples in memory, because they are needed repeatedly."""

    vectors: dict[str, np.ndarray]

    def of(self, sample_ids: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[each] for each in sample_ids])


def _unit(column: pl.Series) -> np.ndarray:
    vectors = column.explode().to_numpy().reshape(len(column), -1).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
