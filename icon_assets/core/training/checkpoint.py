"""A checkpoint: its training, the files besides its weights (manifest and card), its rows, and what abandoned trainings
left."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from icon_assets.core.digests import canonical_json, directory_digest
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.training.encode import encode_samples
from icon_assets.core.training.fine_tune import TrainingResult, fine_tune
from icon_assets.workspace import Workspace

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A finished training and where its checkpoint lies."""

    checkpoint_id: str
    arm: str
    seed: int
    subset_id: str
    model_digest: str
    path: str
    digest: str
    result: TrainingResult
    manifest: pl.DataFrame

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps: one batch alone says little."""
        losses = [point.loss for point in self.result.loss_curve]
        tail = losses[-max(1, len(losses) // 10) :]
        return sum(tail) / len(tail)


def train_checkpoint(
    workspace: Workspace,
    record: ModelRecord,
    dtype: str,
    recipe: Recipe,
    arm: str,
    seed: int,
    subset: Event,
    *,
    device: str,
    on_step: Callable[[int, int, float], None],
) -> TrainedCheckpoint:
    """Fine-tune the base model (`record`, `dtype`) on a subset. The checkpoint appears as a whole.

    Args:
        recipe: of the checkpoint; subset: the event that made the subset.
        on_step: told step, steps in all, and loss in nats per response token.
    """
    store = Store(workspace.store_dir)
    settings = workspace.settings.training
    checkpoint_id = recipe.fingerprint
    name = f"{arm}-seed{seed}-{checkpoint_id[:8]}"
    target = workspace.checkpoints_dir / name
    work = workspace.checkpoints_dir / f".{name}.work"
    manifest = manifest_of(store, subset)
    # One row per sample to train on; the manifest names every source line that holds it.
    chosen = manifest.unique("sample_id", keep="first", maintain_order=True)
    encoded = encode_samples(record, chosen, settings)
    with sole_writer(target), new_directory(target) as partial:
        remove_abandoned(target, f"{arm}-seed{seed}")
        result = fine_tune(
            record.directory,
            encoded,
            settings,
            seed,
            out_dir=partial,
            work_dir=work,
            dtype=dtype,
            device=device,
            on_step=on_step,
        )
        manifest.select("sample_id", "file", "row", "rank", "score").write_ndjson(partial / MANIFEST)
        write_card(partial, recipe, record.name, record.revision, record.digest, checkpoint_id)
        product = directory_digest(partial)
    shutil.rmtree(work, ignore_errors=True)
    path = target.relative_to(workspace.root).as_posix()
    return TrainedCheckpoint(checkpoint_id, arm, seed, subset.digest, record.digest, path, product, result, manifest)


def store_checkpoint(store: Store, run: TrainedCheckpoint, recipe: Recipe) -> None:
    """Its rows: the one in `checkpoints` comes last and makes it count."""
    result = run.result
    row = {
        "checkpoint_id": run.checkpoint_id,
        "arm": run.arm,
        "seed": run.seed,
        "subset_id": run.subset_id,
        "model_digest": run.model_digest,
        "path": run.path,
        "digest": run.digest,
        "n_samples": result.n_samples,
        "n_tokens": result.n_tokens,
        "n_response_tokens": result.n_response_tokens,
        "n_steps": result.n_steps,
        "seconds": result.seconds,
        "final_loss": run.final_loss,
        "flops": result.flops,
        "settings": canonical_json(dict(recipe.settings)),
        "created_at": store.now_after("checkpoints", "created_at"),
    }
    named = pl.lit(run.checkpoint_id).alias("checkpoint_id")
    losses = pl.DataFrame([vars(point) for point in result.loss_curve])
    store.replace("checkpoint_samples", run.manifest.with_columns(named), checkpoint_id=run.checkpoint_id)
    store.replace("loss_curves", losses.with_columns(named), checkpoint_id=run.checkpoint_id)
    store.replace("checkpoints", pl.DataFrame([row]), checkpoint_id=run.checkpoint_id)


def count_again(store: Store, checkpoint_id: str) -> None:
    """A checkpoint that is kept is what was trained last, also when others were trained in another way meanwhile."""
    row = store.query(
        """
        FROM delta.checkpoints SEMI JOIN (FROM checkpoints WHERE NOT is_current) USING (checkpoint_id)
        WHERE checkpoint_id = $id
        """,
        {"id": checkpoint_id},
    )
    if row.height:
        store.replace(
            "checkpoints",
            row.with_columns(created_at=pl.lit(store.now_after("checkpoints", "created_at"))),
            checkpoint_id=checkpoint_id,
        )
        store.publish()


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
