"""A light selector from its training to its predictions, without Dagster and without a base model."""

import json
from pathlib import Path

import pytest

from icon_assets.core.digests import directory_digest
from icon_assets.core.selector.learning import scored_samples
from icon_assets.core.selector.made import Base, make_selector, predict, store_selector
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace
from icon_assets_tests.core.selector.test_learning import KEY, SCORED, N, World

RECIPE = Recipe("selector", "", (), {"kind": "light"}, 0, "1")


def no_base() -> Base:
    pytest.fail("the light kind needs no base model")


def test_a_light_selector_is_made_stored_and_asked(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Settings())
    store = World(workspace.store_dir, signal=1.0, length=0.0).store
    scored = scored_samples(store, KEY, "none", N)
    made = make_selector(workspace, KEY, RECIPE, "none", scored, no_base, lambda epoch, precision: None)
    directory = tmp_path / made.path
    assert (directory.name, directory_digest(directory)) == (f"light-{RECIPE.fingerprint[:8]}", made.digest)
    card = json.loads((directory / "selector.json").read_text())
    assert (card["selector_id"], card["control"], card["n_train"]) == (RECIPE.fingerprint, "none", SCORED)
    assert {"selector_id", "path", "train_samples", "held_out_samples", "alpha", "auc"} <= made.summary.keys()
    store_selector(store, made, "light", "weights")
    assert store.query("SELECT selector_id, kind, path, digest FROM delta.selectors").row(0) == (
        RECIPE.fingerprint,
        "light",
        made.path,
        made.digest,
    )
    assert _metrics(store) == made.metrics.height
    scores = [predict(store, KEY, shard, "light", directory, no_base) for shard in ("s0", "s1", "nowhere")]
    assert [part.height for part in scores] == [N // 2, N // 2, 0]
    assert [part.columns for part in scores] == [["sample_id", "score"]] * 3


def _metrics(store: Store) -> int:
    return store.query("SELECT count(*) FROM delta.selector_metrics").item()
