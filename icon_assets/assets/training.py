"""Group `training`: one fine-tuned checkpoint per arm and seed."""

import shutil
from dataclasses import dataclass

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, mendable, refuse_changed, unchanged
from icon_assets.assets.model import base_model
from icon_assets.core.digests import canonical_json, directory_digest
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse
from icon_assets.core.selection.arm import drawn_for
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.training.checkpoint import MANIFEST, manifest_of, remove_abandoned, write_card
from icon_assets.core.training.encode import encode_samples
from icon_assets.core.training.fine_tune import TrainingResult, fine_tune
from icon_assets.metadata import OWNERS, column_schema, curve
from icon_assets.partitions import arm_and_seed, run_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace


def training_assets(workspace: Workspace, selected_subset: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of this group; their partitions are the arms and seeds of the settings."""

    @dg.asset(
        partitions_def=run_partitions(workspace),
        deps=[selected_subset, base_model],
        group_name="training",
        kinds={"pytorch", "huggingface"},
        owners=OWNERS,
        pool="gpu",
        code_version=CODE_VERSIONS["checkpoint"],
        metadata=column_schema("checkpoints"),
    )
    @mendable
    def checkpoint(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """The base model fine-tuned on an arm's subset, or on the draw for this seed, on response tokens only, with the
        manifest of its samples."""
        arm, seed = arm_and_seed(context)
        store = icon.store
        settings = icon.settings.training
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
            "checkpoint_id": run.checkpoint_id,
            "subset_id": subset.digest,
            "path": run.path,
            "samples": run.result.n_samples,
            "tokens": run.result.n_tokens,
            "response_tokens": run.result.n_response_tokens,
            "steps": run.result.n_steps,
            "seconds": round(run.result.seconds, 2),
            "final_loss": run.final_loss,
            "truncated_samples": run.result.n_truncated,
            "flops": run.result.flops,
            "resumed_from_step": run.result.resumed_from_step,
        }
        points = [(float(p.step), p.loss) for p in run.result.loss_curve]
        picture = curve(points, f"Training loss, {arm} seed {seed}", "optimizer step", "nats per response token")
        return finish(context, store, recipe, run.digest, summary, {"loss_curve": picture})

    return [checkpoint]


@dataclass(frozen=True)
class _Run:
    """A finished training and the directory of its checkpoint."""

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
        """Mean loss of the last tenth of the steps, because a single batch says little."""
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
    workspace = icon.workspace
    store = icon.store
    settings = icon.settings.training
    checkpoint_id = recipe.fingerprint
    name = f"{arm}-seed{seed}-{checkpoint_id[:8]}"
    target = workspace.checkpoints_dir / name
    work = workspace.checkpoints_dir / f".{name}.work"
    manifest = manifest_of(store, subset)
    # One row per training sample; the manifest lists every source line that contains it.
    chosen = manifest.unique("sample_id", keep="first", maintain_order=True)
    encoded = encode_samples(record, chosen, settings)

    def on_step(step: int, total: int, loss: float) -> None:
        if step == total or step % 10 == 0:
            context.log.info(f"{arm} seed {seed}: step {step} of {total}, loss {loss:.3f}")

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
            device=icon.device(),
            on_step=on_step,
        )
        manifest.select("sample_id", "file", "row", "rank", "score").write_ndjson(partial / MANIFEST)
        write_card(partial, recipe, record.name, record.revision, record.digest, checkpoint_id)
        product = directory_digest(partial)
    shutil.rmtree(work, ignore_errors=True)
    path = target.relative_to(workspace.root).as_posix()
    return _Run(checkpoint_id, arm, seed, subset.digest, record.digest, path, product, result, manifest)


def _count(store: Store, checkpoint_id: str) -> None:
    """A kept checkpoint becomes the newest one again if others were trained differently in between."""
    row = store.query(
        "FROM delta.checkpoints SEMI JOIN (FROM checkpoints WHERE NOT is_current) USING (checkpoint_id) "
        "WHERE checkpoint_id = $id",
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
