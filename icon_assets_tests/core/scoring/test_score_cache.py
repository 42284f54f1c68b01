"""What is known of other shards' scores, kept from shard to shard, against the same asked of the store anew each
time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from icon_assets.core.inputs.shards import retire_shard
from icon_assets.core.scoring.score_cache import KnownScores
from icon_assets.core.store.schema import schemas
from icon_assets.core.store.tables import Store
from icon_assets_tests.conftest import put_shards

KEY = "k"
ANEW = """
    WITH own AS (SELECT sample_id FROM delta.pool WHERE shard = $shard),
    other AS (
        SELECT DISTINCT sample_id FROM delta.pool ANTI JOIN own USING (sample_id)
        WHERE $ceiling IS NULL OR sample_id < $ceiling
    )
    SELECT contribution FROM other
    LEFT JOIN (FROM sample_scores WHERE score_key = $key AND control = 'none') USING (sample_id)
"""
Step = Callable[[Store], None]


def ingest(store: Store, shard: str, *samples: int) -> None:
    rows = {
        "shard": shard,
        "sample_id": pl.Series([f"{n:016x}" * 2 for n in samples]),
        "file": shard,
        "row": 1,
        "n_chars": 1,
    }
    names = schemas()["samples"].names
    store.replace("samples", pl.DataFrame({**dict.fromkeys(names, ""), **rows}).select(names), shard=shard)
    put_shards(store, shard)


def score(store: Store, shard: str, key: str = KEY, n_probes: int = 4, **scores: float) -> None:
    """Scores of samples by number: `s1=0.5`."""
    rows = [
        {
            "shard": shard,
            "score_key": key,
            "control": control,
            "sample_id": f"{int(name[1:]):016x}" * 2,
            "contribution": value + shift,
            "consistency": 0.0,
            "stability": 0.0,
            "coverage": 0.0,
            "significance": 0.0,
            "standard_error": 0.0,
            "n_probes": n_probes,
            "n_context_tokens": 1,
            "truncated": False,
        }
        for name, value in scores.items()
        for control, shift in (("none", 0), ("random_tokens", 9))
    ]
    frame = pl.DataFrame(rows, schema=schemas()["sample_scores"].names)
    store.replace("sample_scores", frame, shard=shard, score_key=key)


STEPS: dict[str, Step] = {
    "nothing is scored": lambda store: None,
    "a shard is scored": lambda store: score(store, "a", s1=0.1, s2=0.2),
    "so is one that shares a sample and knows more of it": lambda store: score(store, "b", n_probes=8, s2=0.7, s3=0.3),
    "the first is scored again, otherwise": lambda store: score(store, "a", s1=-0.5, s2=0.2),
    "and under another key": lambda store: score(store, "a", key="other", s1=5.0, s2=5.0),
    "a line of it is replaced, not scored yet": lambda store: ingest(store, "a", 1, 7),
    "a shard comes": lambda store: ingest(store, "d", 8, 9),
    "one loses its scores": lambda store: score(store, "a"),
    "a shard goes": lambda store: retire_shard(store, "b"),
    "and comes back": lambda store: put_shards(store, "b"),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    ingest(store, "a", 1, 2)
    ingest(store, "b", 2, 3)
    ingest(store, "c", 4, 5, 6)
    return store


@pytest.mark.parametrize("ceiling", [None, f"{3:016x}" * 2], ids=["all", "drawn"])
def test_what_is_kept_is_what_the_store_says_whatever_happens_meanwhile(store: Store, ceiling: str | None) -> None:
    known = KnownScores(store, KEY, "none", ceiling)
    for name, step in STEPS.items():
        step(store)
        drawn = "SELECT DISTINCT shard FROM delta.pool WHERE $ceiling IS NULL OR sample_id < $ceiling"
        for shard in store.query(drawn, {"ceiling": ceiling})["shard"]:
            anew = (
                store.query(ANEW, {"shard": shard, "key": KEY, "ceiling": ceiling})["contribution"]
                .fill_null(np.nan)
                .to_numpy()
            )
            assert np.array_equal(np.sort(known.elsewhere(shard)), np.sort(anew), equal_nan=True), (name, shard)
