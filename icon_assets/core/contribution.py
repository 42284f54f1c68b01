"""From stored pairs to scores: one SQL query over the pair table, no forward pass (sql/contribution.sql)."""

from collections.abc import Sequence

import polars as pl

from icon_assets.core.score_key import ScoreKey
from icon_assets.core.store import Store, sql_text
from icon_assets.settings import ControlSettings


def control_seeds(settings: ControlSettings) -> list[int]:
    """The seeds whose random contexts are averaged."""
    return [settings.seed + draw for draw in range(settings.draws)]


def contributions(
    store: Store, key: ScoreKey, shard: str, settings: ControlSettings, reference: Sequence[str] = ()
) -> pl.DataFrame:
    """Rows of the table `sample_scores` for one shard.

    Args:
        reference: samples that every probe was scored for. Where some samples lack probes (budgeted mode), what an
            average sample does to each probe is taken from them; the estimate is unbiased, since the probes that were
            scored are a random subset.
    """
    return store.query(
        sql_text("contribution.sql"),
        {
            "score_key": key.value,
            "shard": shard,
            "controls": list(settings.kinds),
            "seeds": control_seeds(settings),
            "reference": list(reference),
        },
    )
