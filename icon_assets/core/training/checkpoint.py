"""The files of a checkpoint besides its weights (manifest and card), and the remains of abandoned trainings."""

import json
import shutil
from pathlib import Path

import polars as pl

from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store

MANIFEST = "manifest.jsonl"


def remove_abandoned(target: Path, run: str) -> None:
    """Remove states of killed trainings that will never resume, because their settings or samples have changed."""
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
    """A description of the checkpoint, for readers of the directory without the store."""
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
