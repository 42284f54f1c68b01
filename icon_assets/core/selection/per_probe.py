"""What each sample is worth to each probe, for arms that choose for the probes one by one instead of by their mean."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.features.words import bm25
from icon_assets.core.inputs.strata import pool_strata
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.contribution import log_gains
from icon_assets.core.scoring.peers import PEERS, peer_gains
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings

COSINE = "cosine"
BM25 = "bm25"
SIMILARITIES = (COSINE, BM25)


@dataclass(frozen=True)
class PerProbe:
    """Values of the pool's samples for the current probes, from what is stored. Nothing is computed by a model.

    Attributes:
        seed: of the draw that peers are learned from, `probes.seed`.
    """

    store: Store
    key: ScoreKey
    controls: ControlSettings
    seed: int
    _known: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def sample_ids(self) -> list[str]:
        """Of the rows of every matrix: the unique samples of the pool, sorted."""
        return self.store.query("SELECT DISTINCT sample_id FROM delta.pool ORDER BY ALL")["sample_id"].to_list()

    @cached_property
    def probes(self) -> pl.DataFrame:
        """Of the columns of every matrix: probe_id, sorted, and stratum."""
        return self.store.query("SELECT probe_id, stratum FROM probes ORDER BY probe_id")

    @cached_property
    def strata(self) -> pl.DataFrame:
        """sample_id and stratum of every unique sample of the pool."""
        return pool_strata(self.store)

    def values(self, kind: str) -> np.ndarray:
        """[samples, probes] of float32, higher is better; NaN where it is not stored.

        Args:
            kind: a control (log gain against it, nats per token), `cosine` (of embeddings), or `bm25` (of prompts).

        Raises:
            IconError: what the values are made from is missing.
        """
        if kind not in self._known:
            self._known[kind] = self._read(kind)
        return self._known[kind]

    def _read(self, kind: str) -> np.ndarray:
        ids = self.sample_ids, self.probes["probe_id"].to_list()
        if kind == COSINE:
            return Embeddings(self.store, self.key.value).cosines(self.sample_ids)
        if kind == BM25:
            return bm25(self.store, *ids)
        if kind == PEERS:
            return peer_gains(self.store, self.key, self.seed, *ids)
        return log_gains(self.store, self.key, self.controls, kind, *ids)
