"""Group `selection`: each arm's choice of training samples, and how far to trust it."""

from dataclasses import replace

import dagster as dg
import polars as pl

from icon_assets.assets.features import probe_features, sample_features
from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged, unchanged_and_newest
from icon_assets.assets.scoring import sample_scores
from icon_assets.assets.selector import predicted_scores
from icon_assets.core.digests import digest, frame_digest
from icon_assets.core.planning.recipes import CODE_VERSIONS
from icon_assets.core.quality import refuse_changed
from icon_assets.core.selection.arm import controls_needed, draws, tables_of_arms
from icon_assets.core.selection.candidates import Candidates, read_candidates
from icon_assets.core.selection.choose import Subset, chosen_samples, is_comparable, scoring_cost, select, token_figures
from icon_assets.core.store import ledger
from icon_assets.core.training.encode import training_tokens
from icon_assets.core.trust.figures import Choice, trust_figures
from icon_assets.core.trust.warnings import warnings
from icon_assets.metadata import OWNERS, column_schema, histogram, markdown_list, markdown_table
from icon_assets.partitions import arm_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace


def selection_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """The assets of this group; their partitions are the arms of the settings."""

    @dg.asset(
        partitions_def=arm_partitions(workspace),
        deps=_dependencies(workspace.settings),
        group_name="selection",
        kinds={"polars", "deltalake"},
        owners=OWNERS,
        code_version=CODE_VERSIONS["selected_subset"],
        metadata=column_schema("selections"),
    )
    @mendable
    def selected_subset(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """The samples that one arm chose, with rank, score and reason. `full` is the whole pool without duplicates. A
        random arm draws once for each training seed: `random`, `random.1`, ..."""
        arm = context.partition_key
        seeds = icon.settings.training.seeds
        # The arm's own subset last, because the partition shows the last one.
        results = [_choose(context, icon, name) for name in reversed(draws(arm, seeds))]
        versions = [result.data_version.value for result in results if result.data_version]
        return (
            results[-1] if len(versions) == 1 else results[-1]._replace(data_version=dg.DataVersion(digest(versions)))
        )

    @dg.asset(
        partitions_def=arm_partitions(workspace),
        group_name="selection",
        kinds={"polars", "duckdb"},
        owners=OWNERS,
        deps=[dg.AssetDep(selected_subset, partition_mapping=dg.AllPartitionMapping())],
        code_version=CODE_VERSIONS["selection_trust"],
        metadata=column_schema("trust_figures"),
    )
    @mendable
    def selection_trust(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """How far to trust an arm's selection: how much of it is explained by length, how much other probes and other
        random contexts would keep, its composition, and its overlap with the other arms.
        """
        arm = context.partition_key
        store = icon.store
        settings = icon.settings
        recipes = icon.recipes
        recipe = recipes.of("selection_trust", arm)
        subset = recipes.needed("selected_subset", arm)
        if event := kept(context, icon, recipe):
            return unchanged(event)
        subsets = recipes.made("selected_subset")
        chosen = {
            name: chosen_samples(store, name, subsets[name].digest)
            for name in subsets
            if name in settings.selection.arms
        }
        selected = Choice(arm, chosen.pop(arm), {name: set(ids) for name, ids in chosen.items()})
        figures = trust_figures(store, icon.score_key(), settings, _candidates(icon, arm), selected)
        store.replace("trust_figures", figures.with_columns(subset_id=pl.lit(subset.digest)), arm=arm)
        said = warnings(figures, settings.selection.length_warning)
        for line in said:
            context.log.warning(line)
        summary = {"subset_id": subset.digest, "figures": figures.height, "warnings": len(said)}
        return finish(
            context,
            store,
            recipe,
            frame_digest(figures),
            summary,
            {
                "dagster/row_count": figures.height,
                "trust": markdown_table(figures.drop("arm")),
                "warned_of": markdown_list(said),
            },
        )

    return [selected_subset, selection_trust]


def _choose(context: dg.AssetExecutionContext, icon: WorkspaceResource, name: str) -> dg.MaterializeResult:
    """Choose and store the subset of an arm, or of one of its draws."""
    store = icon.store
    settings = icon.settings
    recipe = icon.recipes.of("selected_subset", name)
    if event := kept(context, icon, recipe):
        return unchanged_and_newest(context, store, recipe, event, counts=is_comparable(store, name))
    refuse_changed(icon.workspace, recipe.inputs)
    pool = _candidates(icon, name)
    subset = select(name, pool)
    store.replace(
        "selections",
        subset.rows.with_columns(subset_id=pl.lit(subset.subset_id), arm=pl.lit(name)),
        arm=name,
        subset_id=subset.subset_id,
    )
    summary = {
        "subset_id": subset.subset_id,
        "samples": subset.rows.height,
        "pool_samples": pool.samples.height,
        **({"skipped_near_duplicates": subset.skipped} if settings.selection.diversity else {}),
        **token_figures(subset, pool),
        **scoring_cost(store, icon.score_key(), name, settings.selection),
    }
    return finish(
        context,
        store,
        recipe,
        subset.subset_id,
        summary,
        {
            "dagster/row_count": subset.rows.height,
            **_pictures(subset, pool.samples),
        },
    )


def _dependencies(settings: Settings) -> list[dg.AssetDep]:
    """Scores of every shard, and the other data that the arms of the settings rank by."""
    known = {asset.key.to_user_string(): asset for asset in (sample_features, probe_features, predicted_scores)}
    ranked_by = [sample_scores, *(known[name] for name in sorted(tables_of_arms(settings.selection)))]
    every = dg.AllPartitionMapping()
    return [dg.AssetDep(asset, partition_mapping=every if asset.partitions_def else None) for asset in ranked_by]


def _candidates(icon: WorkspaceResource, arm: str) -> Candidates:
    """The pool as the arm sees it."""
    settings = icon.settings
    store = icon.store
    controls = controls_needed(arm, settings.selection)
    pool = read_candidates(
        store, icon.score_key(), settings.selection, settings.controls, controls, settings.probes.seed
    )
    if settings.selection.budget != "tokens":
        return pool
    shards = tuple((event.partition, event.digest) for event in ledger.current_shards(store, "raw_pool"))
    tokens = training_tokens(store, icon.base_model()[0], settings.training.model_dump_json(), shards)
    return replace(pool, samples=pool.samples.join(tokens, on="sample_id", maintain_order="left"))


def _pictures(subset: Subset, pool: pl.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    chosen = subset.rows.join(pool, on="sample_id")
    columns = ["rank", "sample_id", "score", "n_tokens"]
    lengths = pl.DataFrame(
        {
            "": ["chosen", "pool"],
            "median_context_tokens": [chosen["n_tokens"].median(), pool["n_tokens"].median()],
            "median_response_chars": [chosen["n_response_chars"].median(), pool["n_response_chars"].median()],
        }
    )
    pictures = {
        "first_samples": markdown_table(chosen.sort("rank").select(columns).head(10)),
        "length": markdown_table(lengths),
    }
    if subset.rows["score"].null_count() < subset.rows.height:
        title = f"Score of the samples arm {subset.arm} chose"
        pictures["score_histogram"] = histogram(subset.rows["score"].drop_nulls().to_list(), title, "score")
    return pictures
