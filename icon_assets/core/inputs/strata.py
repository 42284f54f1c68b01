"""The kind of task of every sample of the pool."""

import polars as pl

from icon_assets.core.inputs.ingest import STRATUM_FIELDS
from icon_assets.core.store.tables import Store

_MOST_STRATA = 100


def pool_strata(store: Store) -> pl.DataFrame:
    """sample_id and stratum of every unique sample: the first of `STRATUM_FIELDS` that at least half of the rows have,
    with 2 to 100 different values. Without such a field it is the file."""
    fields = ", ".join(
        f"count(metadata->>'{each}') * 2 >= count(*) AND count(DISTINCT metadata->>'{each}') BETWEEN 2 AND "
        f"{_MOST_STRATA} AS {each}"
        for each in STRATUM_FIELDS
    )
    usable = store.query(f"SELECT {fields} FROM delta.pool").row(0, named=True)  # noqa: S608  (our own text)
    field = next((f"metadata->>'{name}'" for name, usable in usable.items() if usable), "file")
    return store.query(f"SELECT sample_id, coalesce(min({field}), '') AS stratum FROM delta.pool GROUP BY sample_id")  # noqa: S608
