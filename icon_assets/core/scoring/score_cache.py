"""A cache of the scores of the whole pool, for the cut of a budgeted pass. It is kept per process, so that each shard
reads only the scores since the previous shard, and not those of all shards again."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from icon_assets.core.store.tables import Store

# Ids are digests: their first 64 bits are unique, and a million of them take 8 MB.
_ID = "('0x' || left(sample_id, 16))::UBIGINT AS id"


class KnownScores:
    """The last computed contributions of the pool's unique samples (with ids below the ceiling) under one key and
    control."""

    def __init__(self, store: Store, score_key: str, control: str, ceiling: str | None = None) -> None:
        self._store = store
        self._score_key = score_key
        self._control = control
        self._ceiling = ceiling
        self._pool = pl.DataFrame()
        self._index = pl.DataFrame()  # of unique samples: id, place
        self._places: dict[str, pl.Series] = {}  # by shard
        self._files: frozenset[str] = frozenset()
        self._scores: dict[str, pl.DataFrame] = {}  # by shard: place, contribution, n_probes

    def elsewhere(self, shard: str) -> np.ndarray:
        """One figure per unique sample that is not in this shard; NaN for those that are not scored yet."""
        self._look_at_pool()
        self._look_at_scores()
        values = np.full(self._index.height, np.nan)
        if scores := [frame for name, frame in self._scores.items() if name in self._places]:
            # A sample in two shards may have more probes in one of them: that score comes last, and is kept.
            ranked = pl.concat(scores).sort("n_probes", maintain_order=True)
            values[ranked["place"].to_numpy()] = ranked["contribution"].to_numpy()
        others = np.ones(self._index.height, bool)
        others[self._places[shard].to_numpy()] = False
        return values[others]

    def _look_at_pool(self) -> None:
        drawn = f"SELECT DISTINCT shard, {_ID} FROM delta.pool WHERE $ceiling IS NULL OR sample_id < $ceiling"  # noqa: S608  (our own text)
        pool = self._store.query_pool(drawn, ceiling=self._ceiling)
        if pool is self._pool:
            return
        self._pool = pool
        self._files = frozenset()
        self._scores = {}
        self._index = pool.select("id").unique().with_row_index("place")
        placed = pool.join(self._index, on="id")
        self._places = {str(shard): rows["place"] for (shard,), rows in placed.group_by("shard")}

    def _look_at_scores(self) -> None:
        """Read the shards that were scored since the last read, by their files, since a live file is never changed."""
        files = frozenset(self._store.files("sample_scores"))
        changed = {_shard_of(file) for file in files ^ self._files}
        self._files = files
        rows = self._store.query(
            f"""
            SELECT shard, {_ID}, contribution, n_probes FROM delta.sample_scores
            WHERE score_key = $score_key AND control = $control AND list_contains($shards, shard)
            """,  # noqa: S608  (our own text)
            {"score_key": self._score_key, "control": self._control, "shards": sorted(changed)},
        )
        for shard in changed:
            self._scores.pop(shard, None)
        for (shard,), scores in rows.join(self._index, on="id").group_by("shard"):
            self._scores[str(shard)] = scores.select("place", "contribution", "n_probes")


def _shard_of(file: str) -> str:
    return Path(file).parent.parent.name.removeprefix("shard=")


@lru_cache(maxsize=1)
def known_scores(store: Store, score_key: str, control: str, ceiling: str | None) -> KnownScores:
    """The cache of this process."""
    return KnownScores(store, score_key, control, ceiling)
