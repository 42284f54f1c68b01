"""Comparison of a shard's new scores with those of its last run."""

import math

import polars as pl

from icon_assets.core.store.tables import Store


def drift(store: Store, shard: str, after: pl.DataFrame) -> dict[str, float]:
    """Comparison of a shard's new scores of one control with those of its last run, for the ledger; {} if there are
    none.

    Args:
        after: rows of `sample_scores` that are about to replace them.
    """
    before = store.query(
        """
        SELECT sample_id, contribution AS before FROM delta.sample_scores WHERE shard = $shard AND control = $control
            AND score_key = (SELECT max_by(summary->>'score_key', seq) FROM delta.events
                WHERE asset = 'sample_scores' AND "partition" = $shard)
        """,
        {"shard": shard, "control": after["control"][0] if after.height else ""},
    )
    both = after.join(before, on="sample_id")
    figures = both.select(
        drift_rank_correlation=pl.corr("before", "contribution", method="spearman"),
        drift_mean_shift=(pl.col("contribution") - pl.col("before")).mean() / pl.col("before").std(),
    ).row(0, named=True)
    told = {name: round(value, 4) for name, value in figures.items() if value is not None and math.isfinite(value)}
    return {"drift_samples": both.height, **told} if len(told) == len(figures) else {}
