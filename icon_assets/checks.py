"""Asset checks: the rules of `core/quality` as Dagster checks, one step per asset. No rule belongs here.

Checks of a partitioned asset have its partitions, so that each partition shows its own verdict, and a partition that
was not checked is not green. A blocking check stops only later steps of the same run. Expensive steps check again
(`refuse`)."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES as DONE

from icon_assets.assets.lifecycle import mendable
from icon_assets.core.planning.freshness import pool_freshness
from icon_assets.core.quality import rules_of
from icon_assets.core.quality.rule import Finding, Rule, Subject
from icon_assets.metadata import description, visible
from icon_assets.resources import WorkspaceResource

FRESHNESS = "scores_are_current"
_SEVERITY = {True: dg.AssetCheckSeverity.WARN, False: dg.AssetCheckSeverity.ERROR}


def build_checks(assets: Sequence[dg.AssetsDefinition]) -> list[dg.AssetChecksDefinition]:
    """The checks of every asset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # checks with partitions
        return [_checks_of(asset) for asset in assets]


def build_freshness_check() -> dg.AssetChecksDefinition:
    """The one check of all shards together. The discovery sensor reports it when it changes."""

    @dg.asset_check(
        asset="sample_scores",
        name=FRESHNESS,
        description="Every shard has scores for its current file, probes, model and settings. Stale shards are still "
        "ranked and selected by their previous scores.",
    )
    def scores_are_current(icon: WorkspaceResource) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(**freshness(icon))

    return scores_are_current


def freshness(icon: WorkspaceResource) -> dict[str, Any]:
    """Whether any shard is new, stale or removed, as `12 of 340 shards stale (model)`: arguments of a check's
    result."""
    found = pool_freshness(icon.recipes)
    return {
        "passed": found.is_current,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": description(found.line),
        "metadata": found.counts,
    }


def _checks_of(asset: dg.AssetsDefinition) -> dg.AssetChecksDefinition:
    """One step for all checks of an asset, because a step costs more than most rules. Each check can also be run
    alone."""
    name = asset.key.to_user_string()
    specs = [
        dg.AssetCheckSpec(
            rule.name,
            asset=asset.key,
            description=rule.why,
            blocking=rule.blocking,
            partitions_def=asset.partitions_def,
        )
        for rule in rules_of(name)
    ]

    @dg.multi_asset_check(name=f"{name}_checks", specs=specs, can_subset=True)
    def checks(context: dg.AssetCheckExecutionContext, icon: WorkspaceResource) -> Iterator[dg.AssetCheckResult]:
        if asset.partitions_def and not context.has_partition_key:
            raise dg.Failure(
                f"{name} has partitions: choose the one whose rows the checks should read", allow_retries=False
            )
        partition = context.partition_key if context.has_partition_key else ""
        made_here = asset.key in context.job_def.asset_layer.selected_asset_keys
        wanted = {key.name for key in context.selected_asset_check_keys}
        with closing(Subject(icon.workspace, name, partition, context.run.run_id if made_here else "")) as subject:
            for rule in rules_of(name):
                if rule.name in wanted:
                    yield _judge(context, rule, subject)

    return checks


@mendable
def _judge(context: dg.AssetCheckExecutionContext, rule: Rule, subject: Subject) -> dg.AssetCheckResult:
    verdict_of = rule.verdict_of(subject) if rule.verdict_of else ""
    if verdict_of and subject.run_id and (run_id := _passed_before(context, rule, subject, verdict_of)):
        return _result(rule, Finding(1, 0, f"passed in run {run_id[:8]}, on these files and libraries"), verdict_of)
    return _result(rule, rule.look(subject), verdict_of)


def _result(rule: Rule, finding: Finding, verdict_of: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=rule.name,
        passed=not finding.wrong,
        severity=_SEVERITY[rule.warns],
        description=description(rule.line(finding)),
        metadata=visible(
            {
                "looked_at": finding.looked_at,
                "wrong": finding.wrong,
                **finding.figures,
                **({"examples": list(finding.examples)} if finding.wrong else {}),
                **({"verdict_of": verdict_of} if verdict_of else {}),
            }
        ),
    )


def _passed_before(context: dg.AssetCheckExecutionContext, rule: Rule, subject: Subject, verdict_of: str) -> str | None:
    """The run of the newest verdict on this partition, if it passed and its subject is still the same."""
    history = context.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey(subject.asset), rule.name),
        1,
        status=DONE,
        partition_filter=PartitionKeyFilter(key=subject.partition or None),
    )
    for record in history:
        evaluation = record.evaluation
        if evaluation and evaluation.passed and evaluation.metadata["verdict_of"].value == verdict_of:
            return record.run_id
    return None
