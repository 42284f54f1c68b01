"""Group `training`: one fine-tuned checkpoint per arm and seed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, mendable, refuse_changed, unchanged
from icon_assets.assets.model import base_model
from icon_assets.core.digests import canonical_json, directory_digest
from icon_assets.core.encoding.prompts import render_for_training
from icon_assets.core.encoding.tokens import Encoded, encode_training
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.model.loading import ModelRecord, load_tokenizer
from icon_assets.core.passes.encoder import sample_of
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse
from icon_assets.core.selection.choose import drawn_for
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.training.fine_tune import TrainingResult, fine_tune
from icon_assets.metadata import OWNERS, column_schema, curve
from icon_assets.partitions import run_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import TrainingSettings, Workspace

MANIFEST = "manifest.jsonl"


def arm_and_seed(context: dg.AssetExecutionContext) -> tuple[str, int]:
    """The two dimensions of a training run's partition."""
    key: Any = context.partition_key
    return key.keys_by_dimension["arm"], int(key.keys_by_dimension["seed"])


def encode_samples(record: ModelRecord, rows: pl.DataFrame, settings: TrainingSettings) -> list[Encoded]:
    """Table rows as token ids under the fine-tuning template, in the rows' order, none longer than the model's positions."""
    tokenizer, limit = load_tokenizer(record.directory), min(settings.max_tokens, record.max_positions)
    return [
        encode_training(tokenizer, render_for_training(sample_of(row), settings.template, tokenizer), limit)
        for row in rows.iter_rows(named=True)
    ]


def training_assets(workspace: Workspace, selected_subset: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of this group; their partitions are the arms and seeds of the settings."""

    @dg.asset(
        partitions_def=run_partitions(workspace), deps=[selected_subset, base_model], group_name="training",
        kinds={"pytorch", "huggingface"}, owners=OWNERS, pool="gpu", code_version=CODE_VERSIONS["checkpoint"],
        metadata=column_schema("checkpoints"),
    )  # fmt: skip
    @mendable
    def checkpoint(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """The base model fine-tuned on an arm's subset, or on the draw for this seed, on response tokens only, with the manifest of
        its samples.
        """
        arm, seed = arm_and_seed(context)
        store, settings = icon.store, icon.settings.training
        recipes = icon.recipes
        subset = recipes.needed("selected_subset", drawn_for(arm, settings.seeds, seed))
        recipe = recipes.of("checkpoint", f"{arm}|{seed}")
        if (event := ledger.made(store, recipe)) and (icon.workspace.root / str(event.summary["path"])).is_dir():
            _count(store, str(event.summary["checkpoint_id"]))
            return unchanged(event)
        refuse(icon.workspace, "selected_subset", subset.partition)
        refuse(icon.workspace, "base_model")
        refuse_changed(icon, (event.as_input() for event in ledger.current_shards(store, "raw_pool")))
        run = _train(context, icon, recipe, arm, seed, subset)
        _store(store, run, recipe)
        summary = {
            "checkpoint_id": run.checkpoint_id, "subset_id": subset.digest, "path": run.path,
            "samples": run.result.n_samples, "tokens": run.result.n_tokens, "response_tokens": run.result.n_response_tokens,
            "steps": run.result.n_steps, "seconds": round(run.result.seconds, 2), "final_loss": run.final_loss,
            "truncated_samples": run.result.n_truncated, "flops": run.result.flops, "resumed_from_step": run.result.resumed_from_step,
        }  # fmt: skip
        points = [(float(p.step), p.loss) for p in run.result.loss_curve]
        picture = curve(points, f"Training loss, {arm} seed {seed}", "optimizer step", "nats per response token")
        return finish(context, store, recipe, run.digest, summary, {"loss_curve": picture})

    return [checkpoint]


@dataclass(frozen=True)
class _Run:
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


def _train(
    context: dg.AssetExecutionContext,
    icon: WorkspaceResource,
    recipe: Recipe,
    arm: str,
    seed: int,
    subset: Event,
) -> _Run:
    record, dtype = icon.base_model()
    workspace, store, settings = icon.workspace, icon.store, icon.settings.training
    checkpoint_id = recipe.fingerprint
    name = f"{arm}-seed{seed}-{checkpoint_id[:8]}"
    target, work = workspace.checkpoints_dir / name, workspace.checkpoints_dir / f".{name}.work"
    manifest = _manifest(store, subset)
    # One row per sample to train on; the manifest names every source line that holds it.
    chosen = manifest.unique("sample_id", keep="first", maintain_order=True)
    encoded = encode_samples(record, chosen, settings)

    def on_step(step: int, total: int, loss: float) -> None:
        if step == total or step % 10 == 0:
            context.log.info(f"{arm} seed {seed}: step {step} of {total}, loss {loss:.3f}")

    with sole_writer(target), new_directory(target) as partial:
        _remove_abandoned(target, f"{arm}-seed{seed}")
        result = fine_tune(
            record.directory, encoded, settings, seed,
            out_dir=partial, work_dir=work, dtype=dtype, device=icon.device(), on_step=on_step,
        )  # fmt: skip
        manifest.select("sample_id", "file", "row", "rank", "score").write_ndjson(partial / MANIFEST)
        _write_card(partial, recipe, record.name, record.revision, record.digest, checkpoint_id)
        product = directory_digest(partial)
    shutil.rmtree(work, ignore_errors=True)
    path = target.relative_to(workspace.root).as_posix()
    return _Run(checkpoint_id, arm, seed, subset.digest, record.digest, path, product, result, manifest)


def _remove_abandoned(target: Path, run: str) -> None:
    """States of trainings that were killed and, their settings or samples being others now, will never go on."""
    for left in target.parent.glob(f".{run}-*"):
        if left.is_dir() and not left.name.startswith(f".{target.name}."):
            shutil.rmtree(left)


def _manifest(store: Store, subset: Event) -> pl.DataFrame:
    return store.query(
        """
        SELECT s.*, c."rank", c.score FROM selections c JOIN samples s USING (sample_id)
        WHERE c.arm = $arm AND c.subset_id = $subset_id ORDER BY c."rank", s.file, s."row"
        """,
        {"arm": subset.partition, "subset_id": subset.digest},
    )


def _write_card(partial: Path, recipe: Recipe, name: str, revision: str, model_digest: str, checkpoint_id: str) -> None:
    """What the checkpoint is, for whoever finds the directory without the store."""
    card = {
        "checkpoint_id": checkpoint_id, "base_model": {"name": name, "revision": revision, "digest": model_digest},
        "partition": recipe.partition, "seed": recipe.seed, "settings": dict(recipe.settings),
        "inputs": [vars(i) for i in recipe.inputs], "manifest": MANIFEST,
    }  # fmt: skip
    (partial / "icon_checkpoint.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _count(store: Store, checkpoint_id: str) -> None:
    """A checkpoint that is kept is what was trained last, also when others were trained in another way meanwhile."""
    row = store.query(
        "FROM delta.checkpoints SEMI JOIN (FROM checkpoints WHERE NOT is_current) USING (checkpoint_id) WHERE checkpoint_id = $id",
        {"id": checkpoint_id},
    )
    if row.height:
        store.replace(
            "checkpoints",
            row.with_columns(created_at=pl.lit(store.now_after("checkpoints", "created_at"))),
            checkpoint_id=checkpoint_id,
        )
        store.publish()


def _store(store: Store, run: _Run, recipe: Recipe) -> None:
    result = run.result
    row = {
        "checkpoint_id": run.checkpoint_id, "arm": run.arm, "seed": run.seed, "subset_id": run.subset_id,
        "model_digest": run.model_digest, "path": run.path, "digest": run.digest, "n_samples": result.n_samples,
        "n_tokens": result.n_tokens, "n_response_tokens": result.n_response_tokens, "n_steps": result.n_steps,
        "seconds": result.seconds, "final_loss": run.final_loss, "flops": result.flops, "settings": canonical_json(dict(recipe.settings)),
        "created_at": store.now_after("checkpoints", "created_at"),
    }  # fmt: skip
    named = pl.lit(run.checkpoint_id).alias("checkpoint_id")
    losses = pl.DataFrame([vars(point) for point in result.loss_curve])
    store.replace("checkpoint_samples", run.manifest.with_columns(named), checkpoint_id=run.checkpoint_id)
    store.replace("loss_curves", losses.with_columns(named), checkpoint_id=run.checkpoint_id)
    store.replace("checkpoints", pl.DataFrame([row]), checkpoint_id=run.checkpoint_id)
