"""Features of samples and probes as they are stored."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store

CHUNK_ROWS = 16_384  # of a source file, whose texts are in memory at a time


def features_of(store: Store, key: ScoreKey, sample_ids: Sequence[str]) -> pl.DataFrame:
    """Rows of sample_id, n_tokens, nll_sum, nll_alone, embedding, n_chars, of the stored ones, by id."""
    asked = _asked(store, key, None, sample_ids)
    return store.query(sql_text("features.sql"), asked).sort("sample_id")


def shard_features(store: Store, key: ScoreKey, shard: str) -> Iterator[pl.DataFrame]:
    """The same for a shard's samples, in chunks, because their embeddings may not fit into memory."""
    return store.batches(sql_text("features.sql"), _asked(store, key, shard, []), CHUNK_ROWS)


def stored_figures(store: Store, key: ScoreKey, shard: str) -> pl.DataFrame:
    """Of a shard's samples all but the embeddings, which are too many for one look: sample_id, n_tokens, nll_sum,
    nll_alone (nats), truncated; by id."""
    return store.query(
        """
        SELECT sample_id, n_tokens, nll_sum, nll_alone, truncated FROM delta.sample_features
        SEMI JOIN (FROM delta.pool WHERE shard = $shard) USING (sample_id) WHERE score_key = $key ORDER BY sample_id
        """,
        {"shard": shard, "key": key.value},
    )


def probe_embeddings(store: Store, key: ScoreKey) -> pl.DataFrame:
    """probe_id and embedding of the probes, by id."""
    return store.query(
        "SELECT probe_id, embedding FROM probe_features SEMI JOIN probes USING (probe_id) "
        "WHERE score_key = $key ORDER BY probe_id",
        {"key": key.value},
    )


def _asked(store: Store, key: ScoreKey, shard: str | None, sample_ids: Sequence[str]) -> dict[str, Any]:
    asked = {"score_key": key.value, "shard": shard, "samples": list(sample_ids)}
    origins = store.query(
        """
        SELECT DISTINCT origin FROM delta.sample_features SEMI JOIN (
            SELECT sample_id FROM delta.pool WHERE shard = $shard UNION SELECT unnest($samples::VARCHAR[])
        ) USING (sample_id) WHERE score_key = $score_key
        """,
        asked,
    )["origin"]
    return {**asked, "origins": origins.to_list()}
