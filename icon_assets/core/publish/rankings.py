"""The rankings of the pool that the newest subsets were chosen from: each is made again from the stored scores."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.peers import PEERS, peer_contributions
from icon_assets.core.selection.arm import controls_needed, draws, rank
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.selection.per_probe import PerProbe
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import SelectionSettings
from icon_assets.workspace import Workspace

_UNRANKED = pl.DataFrame(schema={"sample_id": pl.String, "score": pl.Float64, "rank": pl.Int64})


@dataclass(frozen=True)
class Ranking:
    """The pool as one arm, or one draw of it, ranks it.

    Attributes:
        rows: sample_id, score (null where the arm has none) and rank (from 1), best first. Only ranked samples.
        settings: those that its newest subset was chosen with; without a subset, those of the workspace.
        event: the record of its newest subset, if it has one.
        refused: why the pool can't be ranked now; "" where it can.
    """

    arm: str
    rows: pl.DataFrame
    settings: SelectionSettings
    event: Event | None
    refused: str = ""

    @property
    def direction(self) -> int:
        """1 where a higher score always ranks better, -1 where a lower one does, 0 where scores alone don't decide."""
        score = self.rows["score"]
        if not len(score) or score.null_count():
            return 0
        return 1 if score.is_sorted(descending=True) else -1 if score.is_sorted() else 0


class Rankings:
    """The rankings of all arms of a workspace. The pool is read once."""

    def __init__(self, workspace: Workspace, store: Store) -> None:
        self._settings = workspace.settings
        self.store = store
        self._peers = dict[int, pl.DataFrame]()

    @cached_property
    def score_key(self) -> str:
        """The current score key, "" where nothing is scored."""
        return next(iter(self.store.query("SELECT score_key FROM score_keys WHERE is_current")["score_key"]), "")

    @cached_property
    def key(self) -> ScoreKey | None:
        """The current score key with its parts; None where nothing is scored, or where they are recorded otherwise."""
        for text in self.store.query("SELECT settings FROM score_keys WHERE is_current")["settings"]:
            parts = json.loads(text)
            if parts.keys() == ScoreKey.__dataclass_fields__.keys():
                return ScoreKey(**parts)
        return None

    @cached_property
    def pool(self) -> pl.DataFrame:
        """The unique samples of the pool: the columns of pool_scores.sql."""
        return self.store.query(sql_text("pool_scores.sql"), {"score_key": self.score_key})

    @cached_property
    def events(self) -> Mapping[str, Event]:
        """The record of the newest subset of each arm and draw."""
        return ledger.latest(self.store, "selected_subset")

    @cached_property
    def _seeds(self) -> Mapping[str, int]:
        """The seed of the newest subset of each arm and draw."""
        rows = self.store.query(
            """
            SELECT "partition", max_by(seed, seq) AS seed FROM delta.events
            WHERE asset = 'selected_subset' AND seed IS NOT NULL GROUP BY "partition"
            """
        )
        return dict(rows.iter_rows())

    @cached_property
    def embeddings(self) -> Embeddings:
        return Embeddings(self.store, self.score_key)

    @cached_property
    def per_probe(self) -> PerProbe | None:
        """Values for single probes; None where nothing is scored."""
        if self.key is None:
            return None
        return PerProbe(self.store, self.key, self._settings.controls, self._settings.probes.seed)

    def names(self) -> list[str]:
        """The arms of the settings in their order. Further draws follow their arm, as far as they have a subset."""
        seeds = self._settings.training.seeds
        every = [(arm, name) for arm in self._settings.selection.arms for name in draws(arm, seeds)]
        return [name for arm, name in every if name == arm or name in self.events]

    def made(self) -> list[str]:
        """The arms of the settings that have a subset, each followed by its further draws, by the ledger alone."""
        arms = self._settings.selection.arms
        return [name for arm in arms for name in self.events if name.partition(".")[0] == arm]

    def of(self, name: str) -> Ranking:
        """The ranking of an arm or draw. One that can't be made now says why, and ranks nothing."""
        event = self.events.get(name)
        settings = self.settings_of(event)
        try:
            samples = self._samples(name, settings, event)
            ranked = rank(name, Candidates(samples, settings, self.embeddings, self.per_probe))
        except IconError as error:
            return Ranking(name, _UNRANKED, settings, event, str(error))
        rows = ranked.with_columns(pl.col("score").cast(pl.Float64), rank=pl.int_range(1, pl.len() + 1))
        return Ranking(name, rows.select("sample_id", "score", "rank"), settings, event)

    def settings_of(self, event: Event | None) -> SelectionSettings:
        """The settings that a subset was chosen with."""
        now = self._settings.selection
        if event is None:
            return now
        recorded = {key: value for key, value in event.settings.items() if key in SelectionSettings.model_fields}
        seed = self._seeds.get(event.partition, now.seed)
        unless_recorded = {"budget": "samples", "diversity": None, "aggregate": None, "turns": "probes", "seed": seed}
        return SelectionSettings.model_validate({**now.model_dump(), **unless_recorded, **recorded})

    def chosen(self, event: Event) -> list[str]:
        """The sample ids of a subset, best first."""
        return self.store.query(
            'SELECT sample_id FROM delta.selections WHERE arm = $arm AND subset_id = $subset ORDER BY "rank"',
            {"arm": event.partition, "subset": event.digest},
        )["sample_id"].to_list()

    def _samples(self, name: str, settings: SelectionSettings, event: Event | None) -> pl.DataFrame:
        """The pool with everything that the arm ranks by.

        Raises:
            IconError: no sample is scored on every probe, which the control `peers` needs.
        """
        if PEERS not in controls_needed(name, settings):
            return self.pool
        if self.key is None:
            raise IconError("control peers: nothing is scored; run `icon-assets run --select sample_scores`")
        seed = int((event.settings if event else {}).get("peers_seed", self._settings.probes.seed))
        if seed not in self._peers:
            self._peers[seed] = peer_contributions(self.store, self.key, seed)
        return self.pool.join(self._peers[seed], on="sample_id", how="left", maintain_order="left")
