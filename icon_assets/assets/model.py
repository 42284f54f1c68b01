"""Group `model`: the pinned base model in the workspace."""

import dagster as dg
import polars as pl

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.core.digests import digest
from icon_assets.core.model.loading import choose_device, choose_dtype
from icon_assets.core.model.prepare import prepare
from icon_assets.core.planning.recipes import CODE_VERSIONS, Recipes, asked_of_hardware
from icon_assets.metadata import OWNERS, column_schema
from icon_assets.resources import WorkspaceResource


@dg.asset(
    group_name="model",
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["base_model"],
    metadata=column_schema("models"),
)
@mendable
def base_model(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
    """The language model for scoring and fine-tuning: a safetensors directory in the workspace, pinned by revision and
    by the digest of its weights, configuration and tokenizer.
    """
    workspace = icon.workspace
    store = icon.store
    settings = workspace.settings.model
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    recipe = Recipes(workspace, store, dtype=dtype).of("base_model")
    record = prepare(settings, workspace.models_dir)
    if event := kept(context, icon, recipe):
        return unchanged(event)
    path = record.directory.relative_to(workspace.root).as_posix()
    row = {
        "model_digest": record.digest,
        "name": record.name,
        "revision": record.revision,
        "path": path,
        "dtype": dtype,
        "device": device,
        "n_parameters": record.n_parameters,
    }
    newest = store.query("SELECT * EXCLUDE prepared_at FROM delta.models ORDER BY prepared_at DESC LIMIT 1")
    if newest.to_dicts() != [row]:  # a run that was killed before its ledger row has written it
        store.append("models", pl.DataFrame([{**row, "prepared_at": store.now_after("models", "prepared_at")}]))
    summary = {
        "name": record.name,
        "revision": record.revision,
        "path": path,
        "dtype": dtype,
        "device": device,
        "asked": asked_of_hardware(settings),
        "model_digest": record.digest,
        "parameters": record.n_parameters,
        "max_positions": record.max_positions,
    }
    # Everything downstream is computed in this dtype: the same files in a different dtype are a different model.
    return finish(context, store, recipe, digest([record.digest, dtype]), summary)
