"""A workspace whose selections are on record, made without a model: real ingestion, store, ledger and arms; scores by
the length of the response."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from icon_assets.core.digests import canonical_json, digest
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.inputs.ingest import ingest, quarantine_frame, sample_frame, shard_row
from icon_assets.core.inputs.source_files import discover
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selection.candidates import TOKENS, Candidates
from icon_assets.core.selection.choose import select, token_figures
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Input, Recipe
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import SelectionSettings
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import write_jsonl

_KEY = ScoreKey("m" * 32, "float32", "alpaca", "\n\n\n", 128, 64, 64)
KEY = _KEY.settings()
SCORE_KEY = _KEY.value
CONTROLS = {"kinds": ["none", "random_tokens"], "primary": "none"}


def selected_workspace(
    root: Path,
    files: dict[str, list[dict[str, Any]]],
    arms: tuple[str, ...] = ("full", "random", "icon"),
    fraction: float = 0.5,
) -> Workspace:
    """Pool files that are ingested, scored and chosen from."""
    for name, rows in files.items():
        write_jsonl(root / "pool" / name, rows)
    settings = {"selection": {"arms": list(arms), "fraction": fraction}, "controls": CONTROLS}
    (root / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    workspace = Workspace.load(root)
    store = Store(workspace.store_dir)
    scores = [_score(store, source) for source in _ingested(workspace, store)]
    for arm in arms:
        choose(store, arm, fraction, scores)
    return workspace


def _ingested(workspace: Workspace, store: Store) -> list[tuple[str, Input]]:
    done = []
    for source in discover(workspace.root / "pool"):
        ingested = ingest(source, 100_000)
        store.replace("samples", sample_frame(source, ingested), shard=source.shard)
        store.replace("quarantine", quarantine_frame(source, ingested), shard=source.shard)
        store.replace("shards", shard_row(source, ingested), shard=source.shard)
        recipe = Recipe("raw_pool", source.shard, (Input("file", source.file, ingested.digest),))
        done.append((source.shard, ledger.record(store, recipe, ingested.content_digest, "run", {}).as_input()))
    return done


def _score(store: Store, source: tuple[str, Input]) -> Input:
    shard, raw_pool = source
    model = {"name": "tiny", "revision": None, "dtype": "float32", "device": "cpu"}
    now = datetime.now(UTC)
    row = {"model_digest": "m" * 32, **model, "path": "models/tiny", "n_parameters": 1000, "prepared_at": now}
    store.replace("models", pl.DataFrame([row], schema_overrides={"revision": pl.String}))
    key = {"score_key": SCORE_KEY, "model_digest": "m" * 32, "settings": canonical_json(KEY), "created_at": now}
    store.replace("score_keys", pl.DataFrame([key]))
    rows = store.query(
        """
        SELECT DISTINCT ON (sample_id) $shard AS shard, $key AS score_key, sample_id,
            ln(1 + length(response)) / 20 AS contribution, 0.5 AS consistency, 0.1 AS stability, 0.1 AS coverage,
            0.9 AS significance, 0.0 AS standard_error, 3 AS n_probes,
            length(response) AS n_context_tokens, false AS truncated
        FROM delta.samples WHERE shard = $shard
        """,
        {"shard": shard, "key": SCORE_KEY},
    )
    both = [
        rows.with_columns(control=pl.lit("none")),
        rows.with_columns(pl.col("contribution") - 0.1, control=pl.lit("random_tokens")),
    ]
    store.replace("sample_scores", pl.concat(both), shard=shard, score_key=SCORE_KEY)
    probes = ledger.record(store, Recipe("probe_set"), "p" * 32, "run", {"probes": 3, "strata": 2}).as_input()
    base = ledger.record(store, Recipe("base_model"), "m" * 32, "run", model | {"parameters": 1000}).as_input()
    recipe = Recipe("sample_scores", shard, (raw_pool, probes, base), {"score_key": KEY, "controls": CONTROLS})
    return ledger.record(store, recipe, digest([shard]), "run", {}).as_input()


def choose(store: Store, arm: str, fraction: float, scores: list[Input], **settings: Any) -> None:
    """Let an arm or a draw of one choose, and put its choice on record. Further settings are those of `selection`; with
    a budget of tokens, a sample has as many as its response has characters."""
    pool = store.query(sql_text("pool_scores.sql"), {"score_key": SCORE_KEY})
    chosen_with = SelectionSettings(arms=(arm.partition(".")[0],), fraction=fraction, **settings)
    counted = pool.with_columns(pl.col("n_response_chars").alias(TOKENS)) if "budget" in settings else pool
    candidates = Candidates(counted, chosen_with, Embeddings(store, SCORE_KEY))
    subset = select(arm, candidates)
    rows = subset.rows.with_columns(subset_id=pl.lit(subset.subset_id), arm=pl.lit(arm))
    store.replace("selections", rows, arm=arm, subset_id=subset.subset_id)
    recipe = Recipe("selected_subset", arm, tuple(scores), {"fraction": fraction, **settings}, 0)
    summary = {"subset_id": subset.subset_id, "samples": rows.height, "pool_samples": pool.height}
    ledger.record(store, recipe, subset.subset_id, "run", {**summary, **token_figures(subset, candidates)})
