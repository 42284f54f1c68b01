"""Checks as Dagster runs them: a verdict per partition, what blocks, what only warns, and what is looked at again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator

import dagster as dg
import polars as pl
import pytest

from icon_assets import cli
from icon_assets.checks import build_checks
from icon_assets.core.inputs.source_files import shard_key
from icon_assets.core.quality import RULES, rules_of, training
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, alpaca, write_jsonl

A = shard_key("a.jsonl")
B = shard_key("b.jsonl")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def run(workspace: Workspace, instance: dg.DagsterInstance, *stages: str) -> dict[str, Outcome]:
    workspace = Workspace.load(workspace.root)
    return {o.name: o for o in run_stages(build_assets(workspace), workspace, instance, stages)}


def check_only(
    workspace: Workspace, instance: dg.DagsterInstance, asset: str, **tags: str
) -> dg.ExecuteInProcessResult:
    """The checks of an asset without the asset."""
    assets = build_assets(workspace)
    defs = dg.Definitions(
        assets=assets,
        asset_checks=build_checks(assets),
        resources={"icon": WorkspaceResource(root=str(workspace.root))},
        jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.checks_for_assets(dg.AssetKey(asset)))],
    )
    return defs.resolve_job_def("checks").execute_in_process(instance=instance, raise_on_error=False, tags=tags)


def failed_checks(workspace: Workspace, instance: dg.DagsterInstance, asset: str, partition: str) -> set[str]:
    ran = check_only(workspace, instance, asset, **{"dagster/partition": partition})
    evaluations = ran.get_asset_check_evaluations()
    assert len(evaluations) == len(rules_of(asset))
    assert {evaluation.partition for evaluation in evaluations} == {partition}
    return {evaluation.check_name for evaluation in evaluations if not evaluation.passed}


def test_a_run_of_a_partition_leaves_the_verdicts_on_that_partition(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    write_jsonl(finished.root / "eval" / "held_out.jsonl", [POOL_A[0]])
    outcomes = run(finished, instance, "raw_pool")
    assert outcomes[f"raw_pool[{B}]"].warning is None
    warned = outcomes[f"raw_pool[{A}]"]
    assert warned.error is None, "a warning fails nothing"
    assert warned.warning is not None
    assert warned.warning.startswith(
        "check holds_no_evaluation_item: 1 of 4 samples overlap with an evaluation item (a.jsonl:1 overlaps with"
    )
    key = dg.AssetCheckKey(dg.AssetKey("raw_pool"), "holds_no_evaluation_item")
    history = instance.event_log_storage.get_asset_check_execution_history(key, 10)
    verdicts = {record.partition: record.evaluation.passed for record in history if record.evaluation}
    assert verdicts == {A: False}, "the other shard is up to date and sound: it needed no run"


def test_training_on_evaluation_data_is_refused_also_in_a_later_run(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    write_jsonl(finished.root / "eval" / "held_out.jsonl", [*POOL_A, *POOL_B])
    shutil.rmtree(finished.checkpoints_dir)
    line = "subset_holds_no_evaluation_item: "
    selected = run(finished, instance, "selected_subset")["selected_subset[icon]"].error
    assert selected is not None
    assert selected.startswith(f"check {line}")
    trained = run(finished, instance, "checkpoint")["checkpoint[icon|0]"].error
    assert trained is not None
    assert trained.startswith(f"selected_subset [icon]: {line}")
    assert trained.endswith("take these rows out of the pool or the evaluation data, and run again")
    assert not list(finished.root.glob("checkpoints/*")), "nothing was trained"


def test_a_blocking_check_stops_what_follows_in_the_same_run(finished: Workspace, instance: dg.DagsterInstance) -> None:
    write_jsonl(finished.root / "eval" / "held_out.jsonl", [*POOL_A, *POOL_B])
    assets = [
        asset for asset in build_assets(finished) if asset.key.to_user_string() in {"selected_subset", "follower"}
    ]

    @dg.asset(deps=[assets[0].key], partitions_def=assets[0].partitions_def)
    def follower() -> None:
        raise AssertionError("must not run")

    ran = dg.materialize(
        [*assets, *build_checks(assets), follower],
        instance=instance,
        partition_key="icon",
        raise_on_error=False,
        resources={"icon": WorkspaceResource(root=str(finished.root))},
    )
    assert not ran.success
    assert {
        event.asset_key.to_user_string() for event in ran.get_asset_materialization_events() if event.asset_key
    } == {"selected_subset"}
    assert not [event for event in ran.get_step_failure_events() if event.step_key == "follower"]


def test_probes_that_came_into_the_pool_are_seen_before_they_are_scored(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    store = Store(finished.store_dir)
    probe = store.query("SELECT instruction, input, response FROM probes LIMIT 1").row(0)
    write_jsonl(finished.root / "pool" / "b.jsonl", [*POOL_B, alpaca(probe[0], "Who knows?", probe[1])])
    outcomes = run(finished, instance, "raw_pool", "sample_scores")
    line = f"sample_scores [{B}]: no_sample_is_a_probe: 1 of 4 samples overlap with a probe (b.jsonl:4 overlaps with"
    assert str(outcomes[f"sample_scores[{B}]"].error).startswith(line)
    assert store.query("SELECT count(*) FROM pair_scores").item() == 6 * 4, "nothing was spent on it"
    assert outcomes[f"sample_scores[{A}]"].error is None


def test_broken_rows_are_made_anew_although_nothing_they_are_made_from_has_changed(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    store = Store(finished.store_dir)
    samples = store.query("FROM delta.samples ORDER BY ALL")
    scores = store.query("FROM delta.sample_scores ORDER BY ALL")
    store.append("samples", samples.head(1))
    store.replace("sample_scores", scores.filter(pl.col("shard") != B))
    outcomes = run(finished, instance, "raw_pool", "sample_scores")
    assert [o.error for o in outcomes.values() if o.error] == []
    assert {name for name, o in outcomes.items() if o.metadata["changed"]} == {f"raw_pool[{A}]", f"sample_scores[{B}]"}
    assert outcomes[f"sample_scores[{B}]"].metadata["new_pairs"] == 0
    assert store.query("FROM delta.samples ORDER BY ALL").equals(samples)
    assert store.query("FROM delta.sample_scores ORDER BY ALL").equals(scores)


def test_a_file_that_was_taken_out_and_put_back_is_in_the_pool_again(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    store = Store(finished.store_dir)
    path = finished.root / "pool" / "b.jsonl"
    text = path.read_text()
    path.unlink()
    run(finished, instance, "leaderboard")
    assert store.query("SELECT count(DISTINCT sample_id) FROM sample_scores").item() == 4
    path.write_text(text)
    outcomes = run(finished, instance, "raw_pool", "sample_scores")
    assert [o.error for o in outcomes.values() if o.error] == []
    assert store.query("SELECT count(*) FROM samples").item() == 7
    assert store.query("SELECT count(DISTINCT sample_id) FROM sample_scores").item() == 6


def test_a_checkpoint_is_loaded_once_while_its_files_are_the_same_and_by_the_check_on_its_own(
    finished: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = training.load_fine_tuned
    monkeypatch.setattr(training, "load_fine_tuned", lambda *arguments: loads.append(arguments) or load(*arguments))
    assert run(finished, instance, "checkpoint")["checkpoint[icon|0]"].error is None
    assert run(finished, instance, "checkpoint")["checkpoint[icon|0]"].error is None
    assert len(loads) == 1
    assert failed_checks(finished, instance, "checkpoint", "icon|0") == set()
    assert len(loads) == 2

    (adapter,) = finished.root.glob("checkpoints/*/adapter_model.safetensors")
    adapter.write_bytes(adapter.read_bytes()[:-100])
    broken = run(finished, instance, "checkpoint")["checkpoint[icon|0]"].error
    assert "check files_are_as_recorded: " in str(broken)
    assert "check checkpoint_loads: the checkpoint does not load" in str(broken), "no stale green"
    assert failed_checks(finished, instance, "checkpoint", "icon|0") == {"files_are_as_recorded", "checkpoint_loads"}
    store = Store(finished.store_dir)
    store.replace("eval_results", store.query("FROM delta.eval_results WHERE arm = 'base'"))
    evaluated = run(finished, instance, "eval_results")["eval_results[icon|0]"].error
    assert str(evaluated).startswith("checkpoint [icon|0]: files_are_as_recorded: ")


def test_a_model_that_was_swapped_in_place_neither_scores_nor_trains(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    (config,) = finished.root.glob("models/*/generation_config.json")
    config.write_text(config.read_text() + "\n")
    shutil.rmtree(finished.checkpoints_dir)
    write_jsonl(finished.root / "pool" / "b.jsonl", [*POOL_B, alpaca("New?", "Yes.")])
    outcomes = run(finished, instance, "raw_pool", "sample_scores", "checkpoint")
    assert "its files differ from those that were prepared" in str(outcomes[f"sample_scores[{B}]"].error)
    assert "base_model: model_files_are_as_recorded" in str(outcomes["checkpoint[icon|0]"].error)


def test_the_command_prints_a_warning_and_fails_by_a_failed_check(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ICON_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the command sets them; here they are put back
    write_jsonl(finished.root / "eval" / "held_out.jsonl", [*POOL_A, *POOL_B])
    assert cli.main(["-w", str(finished.root), "run", "--select", "raw_pool"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14] for line in lines] == ["= raw_pool[a.j", "! raw_pool[a.j", "= raw_pool[b.j", "! raw_pool[b.j"]
    assert "check holds_no_evaluation_item: 4 of 4 samples overlap with an evaluation item" in lines[1]
    assert cli.main(["-w", str(finished.root), "run", "--select", "selected_subset", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] == 1
    assert report["runs"][0]["error"].startswith("check subset_holds_no_evaluation_item: ")


def test_checks_of_a_partitioned_asset_are_not_green_without_a_partition(
    finished: Workspace, instance: dg.DagsterInstance
) -> None:
    ran = check_only(finished, instance, "raw_pool")
    assert not ran.success
    assert ran.get_asset_check_evaluations() == []


def test_every_asset_has_checks_and_those_of_partitioned_assets_have_their_partitions(
    make_workspace: Callable[..., Workspace],
) -> None:
    assets = build_assets(make_workspace())
    specs = {spec.key: spec for checks in build_checks(assets) for spec in checks.check_specs}
    there = {asset.key.to_user_string() for asset in assets}
    assert {rule.asset for rule in RULES} - there == {"answers", "pairwise_results"}, "assets that a setting asks for"
    assert len(specs) == sum(rule.asset in there for rule in RULES)
    for asset in assets:
        own = [spec for key, spec in specs.items() if key.asset_key == asset.key]
        assert own, asset.key
        assert all(spec.partitions_def == asset.partitions_def for spec in own)
        assert all(spec.description for spec in own)
