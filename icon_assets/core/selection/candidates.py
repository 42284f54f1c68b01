"""The candidates of the arms: the unique samples of the pool with their lengths, scores and features."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.peers import PEERS, peer_contributions
from icon_assets.core.selection.per_probe import PerProbe
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, SelectionSettings

TOKENS = "n_training_tokens"


@dataclass(frozen=True)
class Candidates:
    """The pool as arms see it.

    Attributes:
        samples: by sample_id. Columns: n_response_chars, n_tokens, one for each quantity that arms rank by, and
            n_training_tokens where `selection.budget` counts those.
        embeddings: the stored vectors, if there are any.
        per_probe: the values of samples for single probes, if there are any.
        draw: the number of the draw that a drawn arm makes.
        rankings: rankings of the arms, kept because other arms and figures need them again.
    """

    samples: pl.DataFrame
    settings: SelectionSettings
    embeddings: Embeddings | None = None
    per_probe: PerProbe | None = None
    draw: int = 0
    rankings: dict[str, pl.DataFrame] = field(default_factory=dict)

    def at(self, fraction: float) -> "Candidates":
        """The same candidates for a different fraction, ranked again, because an arm's ranking might depend on the
        fraction."""
        return replace(self, settings=self.settings.model_copy(update={"fraction": fraction}), rankings={})

    def probe_values(self) -> PerProbe:
        """
        Raises:
            IconError: no values for single probes are at hand.
        """
        if self.per_probe is None:
            raise IconError("pair_scores: no values for single probes are at hand; materialize sample_scores first")
        return self.per_probe

    def vectors(self) -> Embeddings:
        """
        Raises:
            IconError: no embeddings are at hand.
        """
        if self.embeddings is None:
            raise IconError("sample_features: no embeddings are at hand; materialize sample_features first")
        return self.embeddings


def read_candidates(
    store: Store,
    key: ScoreKey,
    settings: SelectionSettings,
    controls: ControlSettings,
    ranked_by: Collection[str] = (),
    seed: int = 0,
) -> Candidates:
    """The candidates of a store.

    Args:
        controls: how controls were measured.
        ranked_by: the controls that arms rank by. `peers` is computed here, and only if it is given.
        seed: seed of the draw that peers are learned from, `probes.seed`.
    """
    samples = store.query(sql_text("pool_scores.sql"), {"score_key": key.value})
    if PEERS in ranked_by:
        peers = peer_contributions(store, key, seed)
        samples = samples.join(peers, on="sample_id", how="left", maintain_order="left")
    per_probe = PerProbe(store, key, controls, seed)
    return Candidates(samples, settings, Embeddings(store, key.value), per_probe)
