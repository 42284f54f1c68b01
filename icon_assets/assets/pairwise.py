"""Group `evaluation`, if the settings ask for it: answers of checkpoints to prompts, and a judge's preferences among
them."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from icon_assets.assets.lifecycle import finish, kept, mendable, unchanged
from icon_assets.core.digests import frame_digest
from icon_assets.core.evaluation.answers import greedy_answers
from icon_assets.core.evaluation.judge import Judge
from icon_assets.core.evaluation.pairwise import (
    answer_key,
    answer_rows,
    judge_missing,
    missing_answers,
    pairs_of,
    read_prompts,
    result_rows,
    results,
)
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.model.fine_tuned import load_fine_tuned
from icon_assets.core.planning.recipes import CODE_VERSIONS, pairwise_settings
from icon_assets.core.quality import refuse
from icon_assets.core.quality.training import files_are_as_recorded
from icon_assets.metadata import OWNERS, column_schema, markdown_table
from icon_assets.partitions import arm_and_seed, pairwise_partitions, run_partitions
from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace


def pairwise_assets(workspace: Workspace, checkpoint: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """The assets of this comparison; none where the settings have no `evaluation.pairwise`."""
    if workspace.settings.evaluation.pairwise is None:
        return []

    @dg.asset(
        partitions_def=run_partitions(workspace),
        deps=[checkpoint],
        group_name="evaluation",
        kinds={"pytorch", "huggingface"},
        owners=OWNERS,
        pool="gpu",
        code_version=CODE_VERSIONS["answers"],
        metadata=column_schema("answers"),
    )
    @mendable
    def answers(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """The greedy answers of one checkpoint to the prompts of `evaluation.pairwise`. Only missing answers are
        generated."""
        arm, seed = arm_and_seed(context)
        store = icon.store
        recipes = icon.recipes
        upstream = recipes.needed("checkpoint", f"{arm}|{seed}")
        recipe = recipes.of("answers", f"{arm}|{seed}")
        key = answer_key(icon.settings)
        if event := kept(context, icon, recipe):
            return unchanged(event)
        checkpoint_id = str(upstream.summary["checkpoint_id"])
        wanted = [(name, prompt) for name, prompts in read_prompts(icon.workspace).items() for prompt in prompts]
        missing = missing_answers(store, checkpoint_id, key, wanted)
        if missing:
            _answer(context, icon, str(upstream.summary["path"]), missing, _named(checkpoint_id, arm, seed, key))
        frame = store.query(
            "SELECT * FROM delta.answers WHERE checkpoint_id = $checkpoint ORDER BY prompt_set, prompt_id",
            {"checkpoint": checkpoint_id},
        )
        summary = {
            "checkpoint_id": checkpoint_id,
            "answer_key": key,
            "answers": frame.height,
            "new_answers": len(missing),
            "unfinished": int((~frame["finished"]).sum()),
            "mean_tokens": round(float(frame["n_tokens"].mean() or 0), 1),  # pyright: ignore
        }
        return finish(context, store, recipe, frame_digest(frame), summary, {"dagster/row_count": frame.height})

    @dg.asset(
        partitions_def=pairwise_partitions(workspace),
        deps=[_both_arms(workspace, answers)],
        group_name="evaluation",
        kinds={"openai", "polars"},
        owners=OWNERS,
        code_version=CODE_VERSIONS["pairwise_results"],
        metadata=column_schema("pairwise_results"),
    )
    @mendable
    def pairwise_results(context: dg.AssetExecutionContext, icon: WorkspaceResource) -> dg.MaterializeResult:
        """How often a judge prefers the arm's answers to those of `evaluation.pairwise.against`, with the same seed, in
        both orders."""
        arm, seed = arm_and_seed(context)
        store = icon.store
        recipes = icon.recipes
        pairwise = pairwise_settings(icon.settings)
        own, other = (recipes.needed("answers", f"{each}|{seed}") for each in (arm, pairwise.against))
        judge = Judge(pairwise.judge, pairwise.timeout_seconds)
        confidence = icon.settings.evaluation.confidence
        recipe = recipes.of("pairwise_results", f"{arm}|{seed}")
        if event := kept(context, icon, recipe):
            return unchanged(event)
        ids = str(own.summary["checkpoint_id"]), str(other.summary["checkpoint_id"])
        pairs = pairs_of(store, *ids)

        def on_judged(done: int, total: int) -> None:
            if done == total or done % 20 == 0:
                context.log.info(f"{arm} seed {seed}: {done:,} of {total:,} judgements")

        asked = judge_missing(store, judge, pairs, *ids, at_once=pairwise.judge.requests_at_once, on_judged=on_judged)
        found = results(store, judge, pairs, *ids)
        frame = result_rows(
            found,
            confidence,
            {
                "checkpoint_id": ids[0],
                "other_id": ids[1],
                "arm": arm,
                "against": pairwise.against,
                "seed": seed,
                "judge": judge.name,
            },
        )
        store.replace("pairwise_results", frame, checkpoint_id=ids[0])
        summary = {
            "checkpoint_id": ids[0],
            "other_id": ids[1],
            "judge": judge.name,
            "asked": asked,
            "pairs": len(pairs),
            "unreadable": sum(each.unreadable for each in found),
            "first_shown_preferred": sum(each.first for each in found),
            "sets": [{"prompt_set": each.prompt_set, "pairs": each.n + each.unreadable} for each in found],
        }
        shown = frame.drop("checkpoint_id", "other_id", "judge")
        return finish(context, store, recipe, frame_digest(frame), summary, {"results": markdown_table(shown)})

    return [answers, pairwise_results]


def _both_arms(workspace: Workspace, answers: dg.AssetsDefinition) -> dg.AssetDep:
    """The answers of the same arm, and those of the arm it is compared with, of the same seed."""
    settings = workspace.settings
    assert settings.evaluation.pairwise is not None
    against = settings.evaluation.pairwise.against
    others = {arm for arm in settings.selection.arms if arm != against}
    arms = dg.StaticPartitionMapping({**{arm: {arm} for arm in others}, against: others})
    mapping = dg.MultiPartitionMapping(
        {
            "arm": dg.DimensionPartitionMapping("arm", arms),
            "seed": dg.DimensionPartitionMapping("seed", dg.IdentityPartitionMapping()),
        }
    )
    return dg.AssetDep(answers, partition_mapping=mapping)


def _named(checkpoint_id: str, arm: str, seed: int, key: str) -> dict[str, Any]:
    return {"checkpoint_id": checkpoint_id, "arm": arm, "seed": seed, "answer_key": key}


def _answer(
    context: dg.AssetExecutionContext,
    icon: WorkspaceResource,
    path: str,
    missing: list[tuple[str, Sample]],
    named: Mapping[str, Any],
) -> None:
    """Generate and store batch by batch, so that a killed run can continue where it stopped."""
    refuse(icon.workspace, "checkpoint", f"{named['arm']}|{named['seed']}", files_are_as_recorded)
    record, dtype = icon.base_model()
    settings = icon.settings
    model, tokenizer = load_fine_tuned(record.directory, icon.workspace.root / path, dtype, icon.device())
    batches = greedy_answers(
        model,
        tokenizer,
        [prompt for _, prompt in missing],
        template=settings.training.template,
        max_new_tokens=pairwise_settings(settings).max_new_tokens,
        batch_size=settings.evaluation.batch_size,
        device=icon.device(),
    )
    done = 0
    for batch in batches:
        rows = answer_rows(((*missing[index], answer) for index, answer in batch), named)
        icon.store.append("answers", rows)
        done += rows.height
        context.log.info(f"{named['arm']} seed {named['seed']}: {done:,} of {len(missing):,} answers")
