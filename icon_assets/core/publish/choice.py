"""The record of an arm's newest choice: its samples, their source lines, its inputs and how it compares with its pool.
It is read-only, for export and report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import recorded_summary
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store


@dataclass(frozen=True)
class RecordedChoice:
    """The newest subset of one arm."""

    store: Store
    arm: str
    subset_id: str

    @cached_property
    def lines(self) -> pl.DataFrame:
        """Every source line that holds one of its samples, best rank first.

        Raises:
            IconError: some of the samples have left the pool since.
        """
        lines = self.store.query(sql_text("chosen_lines.sql"), self._parameters)
        chosen = self.store.query(
            "SELECT count(*) FROM delta.selections WHERE arm = $arm AND subset_id = $subset_id", self._parameters
        ).item()
        if gone := chosen - lines["sample_id"].n_unique():
            raise IconError(
                f"arm {self.arm}: {gone} of its {chosen} samples are no longer in the pool; choose again with "
                "`icon-assets run --select raw_pool sample_scores selected_subset`"
            )
        return lines

    @cached_property
    def made_from(self) -> pl.DataFrame:
        """The subset and all its inputs, with their events."""
        key = {"asset": "selected_subset", "partition": self.arm, "digest": self.subset_id}
        return self.store.query(sql_text("made_from.sql"), key)

    def event(self, asset: str) -> Mapping[str, Any]:
        """Digest, settings, seed and summary of an input; empty texts where the ledger has none."""
        row = next(self.made_from.filter(pl.col("asset") == asset).iter_rows(named=True), None)
        if row is None:
            return {"digest": "", "settings": {}, "seed": None, "summary": {}}
        return {**row, "settings": json.loads(row["settings"]), "summary": recorded_summary(row["summary"])}

    @property
    def score_key(self) -> str:
        """The score key of the scores that it was chosen by."""
        settings = self.event("sample_scores")["settings"].get("score_key")
        return digest(settings) if settings else ""

    @cached_property
    def profile(self) -> pl.DataFrame:
        """Lengths and contributions of the chosen samples and of the pool."""
        return self.store.query(sql_text("selection_profile.sql"), {**self._parameters, "score_key": self.score_key})

    @cached_property
    def trust(self) -> pl.DataFrame:
        """The trust figures of this subset."""
        return self.store.query(
            """
            SELECT figure, against, "value", low, high, detail FROM trust_figures
            WHERE arm = $arm AND subset_id = $subset_id ORDER BY figure, against
            """,
            self._parameters,
        )

    @cached_property
    def selector(self) -> Mapping[str, Any] | None:
        """The selector that predicted its scores, with its metrics; None for an arm without one."""
        asked = {"id": self.event("selector")["summary"].get("selector_id")}
        found = self.store.query("FROM selectors WHERE selector_id = $id", asked).to_dicts()
        metrics = self.store.query("FROM selector_metrics WHERE selector_id = $id ORDER BY ALL DESC", asked).to_dicts()
        return {**found[0], "metrics": metrics} if found else None

    @property
    def _parameters(self) -> dict[str, str]:
        return {"arm": self.arm, "subset_id": self.subset_id}


def recorded_choice(store: Store, arm: str) -> RecordedChoice:
    """The newest subset of an arm.

    Raises:
        IconError: the arm has chosen nothing yet.
    """
    event = ledger.newest(store, "selected_subset", arm)
    if event is None:
        known = ", ".join(ledger.latest(store, "selected_subset")) or "none"
        raise IconError(
            f"arm {arm}: has no selection yet (arms with one: {known}); put it into selection.arms and run "
            "`icon-assets run --select selected_subset`"
        )
    return RecordedChoice(store, arm, event.digest)
