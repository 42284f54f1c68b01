"""The files of a checkpoint besides its weights: manifest and card; and what abandoned trainings left."""

import json
import shutil
from pathlib import Path

import polars as pl

from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store

MANIFEST = "manifest.jsonl"


def remove_abandoned(target: Path, run: str) -> None:
    """States of trainings that were killed and, their settings or samples being others now, will never go on."""
    for left in target.parent.glob(f".{run}-*"):
        if left.is_dir() and not left.name.startswith(f".{target.name}."):
            shutil.rmtree(left)


def manifest_of(store: Store, subset: Event) -> pl.DataFrame:
    return store.query(
        """
        SELECT s.*, c."rank", c.score FROM selections c JOIN samples s USING (sample_id)
        WHERE c.arm = $arm AND c.subset_id = $subset_id ORDER BY c."rank", s.file, s."row"
        """,
        {"arm": subset.partition, "subset_id": subset.digest},
    )


def write_card(partial: Path, recipe: Recipe, name: str, revision: str, model_digest: str, checkpoint_id: str) -> None:
    """What the checkpoint is, for whoever finds the directory without the store."""
    card = {
        "checkpoint_id": checkpoint_id,
        "base_model": {"name": name, "revision": revision, "digest": model_digest},
        "partition": recipe.partition,
        "seed": recipe.seed,
        "settings": dict(recipe.settings),
        "inputs": [vars(i) for i in recipe.inputs],
        "manifest": MANIFEST,
    }
    (partial / "icon_checkpoint.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
