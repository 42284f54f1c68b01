"""Group `training`: one fine-tuned checkpoint per arm and seed."""

import dagster as dg

from icon_assets.assets.lifecycle import finish, mendable, unchanged
from icon_assets.assets.model import base_model
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse, refuse_changed
from icon_assets.core.selection.arm import drawn_for
from icon_assets.core.store import ledger
from icon_assets.core.training.checkpoint import count_again, store_checkpoint, train_checkpoint
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
            count_again(store, str(event.summary["checkpoint_id"]))
            return unchanged(event)
        refuse(icon.workspace, "selected_subset", subset.partition)
        refuse(icon.workspace, "base_model")
        refuse_changed(icon.workspace, (event.as_input() for event in ledger.current_shards(store, "raw_pool")))

        def on_step(step: int, total: int, loss: float) -> None:
            if step == total or step % 10 == 0:
                context.log.info(f"{arm} seed {seed}: step {step} of {total}, loss {loss:.3f}")

        run = train_checkpoint(
            icon.workspace, *icon.base_model(), recipe, arm, seed, subset, device=icon.device(), on_step=on_step
        )
        store_checkpoint(store, run, recipe)
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
