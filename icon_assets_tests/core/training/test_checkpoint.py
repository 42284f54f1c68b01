"""A checkpoint's rows: what is stored of a training, and what makes it count again."""

from pathlib import Path

import polars as pl

from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.training.checkpoint import TrainedCheckpoint, count_again, store_checkpoint
from icon_assets.core.training.fine_tune import TrainingResult
from icon_assets.core.training.trainable import LossPoint


def trained(checkpoint_id: str, losses: list[float]) -> TrainedCheckpoint:
    points = tuple(LossPoint(step, loss, 1e-3) for step, loss in enumerate(losses, 1))
    result = TrainingResult(1, 10, 5, len(losses), 0, 100, 1.0, 0, points)
    manifest = pl.DataFrame(
        {"shard": ["x"], "sample_id": ["s"], "file": ["f"], "row": [1], "rank": [1], "score": [0.5]}
    )
    return TrainedCheckpoint(checkpoint_id, "icon", 0, "subset", "model", "checkpoints/c", "digest", result, manifest)


def test_the_final_loss_is_the_mean_of_the_last_tenth_of_the_steps() -> None:
    assert trained("c", [9.0] * 18 + [2.0, 1.0]).final_loss == 1.5
    assert trained("c", [3.0, 1.0]).final_loss == 1.0


def test_a_checkpoint_that_is_kept_counts_as_the_newest_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, rate in (("a", 1e-3), ("b", 2e-3)):
        recipe = Recipe("checkpoint", "icon|0", (), {"learning_rate": rate}, 0, "1")
        store_checkpoint(store, trained(name, [3.0, 1.0]), recipe)
    assert _by_age(store) == ["a", "b"]
    count_again(store, "a")
    assert _by_age(store) == ["b", "a"]
    rows = store.query("SELECT n_steps, final_loss, settings FROM delta.checkpoints WHERE checkpoint_id = 'a'")
    assert rows.row(0) == (2, 1.0, '{"learning_rate":0.001}')
    for table, n in (("checkpoint_samples", 2), ("loss_curves", 4)):
        assert store.query(f"SELECT count(*) FROM delta.{table}").item() == n


def _by_age(store: Store) -> list[str]:
    return store.query("SELECT checkpoint_id FROM delta.checkpoints ORDER BY created_at")["checkpoint_id"].to_list()
