"""Data that several sections of the report need, read once."""

from functools import cached_property
from typing import Any

import polars as pl

from icon_assets.core.evaluation import comparison
from icon_assets.core.store import ledger
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


class Source:
    """Data that several sections need, read once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.store = Store(workspace.store_dir)
        self.length_warning = workspace.settings.selection.length_warning

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.store.query(sql, parameters or None).to_dicts()

    def named(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query in `sql/report/`."""
        return self.rows(sql_text(f"report/{name}.sql"), **parameters)

    @cached_property
    def score_key(self) -> str:
        keys = self.rows("SELECT score_key FROM score_keys WHERE is_current")
        return keys[0]["score_key"] if keys else ""

    @cached_property
    def model(self) -> dict[str, Any] | None:
        return next(iter(self.rows("FROM models ORDER BY prepared_at DESC LIMIT 1")), None)

    @cached_property
    def totals(self) -> dict[str, Any]:
        return self.named("totals", score_key=self.score_key)[0]

    @cached_property
    def products(self) -> pl.DataFrame:
        return self.store.query(sql_text("report/products.sql"))

    @cached_property
    def subsets(self) -> dict[str, str]:
        """The newest subset of each arm of the settings that has one."""
        made = ledger.latest(self.store, "selected_subset")
        return {arm: made[arm].digest for arm in self.workspace.settings.selection.arms if arm in made}

    @property
    def arms(self) -> list[str]:
        return list(self.subsets)

    @cached_property
    def differences(self) -> pl.DataFrame:
        return comparison.differences_of(self.store)

    @cached_property
    def scores(self) -> pl.DataFrame:
        return self.store.query(
            """
            SELECT sample_id, control, contribution, standard_error, n_context_tokens FROM sample_scores
            WHERE score_key = $score_key
            """,
            {"score_key": self.score_key},
        )

    @cached_property
    def ranking(self) -> pl.DataFrame:
        """The scored samples by their contribution under the primary control, best first; `place` counts from 0."""
        primary = self.scores.filter(pl.col("control") == self.workspace.settings.controls.primary)
        return primary.sort("contribution", "sample_id", descending=[True, False]).with_row_index("place")

    @cached_property
    def lengths(self) -> pl.DataFrame:
        """Tokens as a context of every sample of the pool, including samples that were not scored."""
        pool = self.store.query(sql_text("pool_scores.sql"), {"score_key": self.score_key})
        return pool.select("sample_id", "n_tokens")

    @cached_property
    def chosen(self) -> dict[str, pl.DataFrame]:
        """The samples that each arm chose, best first, with their place in the ranking if they are scored. `full` is
        everything and is left out."""
        rows = (
            self.store.query(
                'SELECT arm, sample_id, "rank" FROM delta.selections WHERE list_contains($subsets, subset_id)',
                {"subsets": [subset for arm, subset in self.subsets.items() if arm != "full"]},
            )
            .join(self.ranking.select("sample_id", "place"), on="sample_id", how="left")
            .join(self.lengths, on="sample_id", how="left")
            .sort("rank")
        )
        return {arm: rows.filter(pl.col("arm") == arm) for arm in self.arms if arm != "full"}
