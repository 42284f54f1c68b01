"""Unattended: what discovery reports, what conditions start and what they leave alone, and that there is one
launcher."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from icon_assets.core.errors import IconError
from icon_assets.definitions import build_defs
from icon_assets.jobs import NIGHTLY
from icon_assets.partitions import SHARDS
from icon_assets.resources import WorkspaceResource
from icon_assets.sensors import VERSION_TAG
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, PROBES, alpaca, change, write_jsonl

MakeWorkspace = Callable[..., Workspace]
Requested = dict[str, set[str | None]]
UNATTENDED = {"automation": {"scoring": "on_change"}, "selection": {"arms": ["full", "icon"], "fraction": 0.5}}


class Daemon:
    """Dagster's daemon by hand: discovery ticks, evaluation of the conditions, and launching what they ask for."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursors = {}
        self.evaluated = None
        self.restart(workspace)

    def restart(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.defs = build_defs(workspace)
        self.pool = workspace.root / "pool"

    def discover(self) -> dict[str, Any]:
        """One tick of both sensors; returns the shards whose versions were reported, by file name."""
        reported = {}
        for name in ("discover_pool", "discover_probes"):
            sensor = self.defs.resolve_sensor_def(name)
            resources = {"icon": WorkspaceResource(root=str(self.workspace.root))}
            context = dg.build_sensor_context(self.instance, cursor=self.cursors.get(name), resources=resources)
            result = sensor(context)
            assert isinstance(result, dg.SensorResult), result
            self.cursors[name] = result.cursor
            for request in result.dynamic_partitions_requests or ():
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    self.instance.add_dynamic_partitions(str(SHARDS.name), list(request.partition_keys))
                else:
                    for key in request.partition_keys:
                        self.instance.delete_dynamic_partition(str(SHARDS.name), key)
            for event in result.asset_events or ():
                assert isinstance(event, dg.AssetMaterialization)
                self.instance.report_runless_asset_event(event)
                reported[event.partition or "probes"] = (event.tags or {})[VERSION_TAG]
        return reported

    def requested(self) -> Requested:
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.evaluated)
        self.evaluated = result.cursor
        asked: Requested = {}
        for of in result.results:
            keys = of.true_subset.expensively_compute_asset_partitions() if of.true_subset.size else ()
            if keys:
                asked[of.key.to_user_string()] = {key.partition_key for key in keys}
        return asked

    def launch(self, requested: Requested) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        order = list(self.defs.resolve_asset_graph().toposorted_asset_keys)
        for key in sorted(requested, key=lambda name: order.index(dg.AssetKey(name))):
            for partition in sorted(requested[key], key=str):
                job.execute_in_process(
                    asset_selection=[dg.AssetKey(key)],
                    partition_key=partition,
                    instance=self.instance,
                    raise_on_error=False,
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                )

    def settle(self) -> Requested:
        """Ticks until nothing is asked for any more; returns all that was started."""
        started: Requested = {}
        for _ in range(12):
            self.discover()
            asked = self.requested()
            if not asked:
                return started
            self.launch(asked)
            for name, keys in asked.items():
                started.setdefault(name, set()).update(keys)
        pytest.fail(f"still starting things: {started}")

    def shard(self, file: str) -> str:
        store = WorkspaceResource(root=str(self.workspace.root)).store
        return store.query("SELECT shard FROM shards WHERE file = $file", {"file": file}).item()


@pytest.fixture
def daemon(make_workspace: MakeWorkspace) -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daemon(make_workspace(**UNATTENDED), instance)


def test_a_folder_is_scored_and_selected_from_by_itself_and_only_what_changes_again(daemon: Daemon) -> None:
    started = daemon.settle()
    a = daemon.shard("a.jsonl")
    b = daemon.shard("b.jsonl")
    assert started == {
        "raw_pool": {a, b},
        "probe_set": {None},
        "base_model": {None},
        "probe_baseline": {None},
        "sample_scores": {a, b},
        "selected_subset": {"full", "icon"},
        "selection_trust": {"full", "icon"},
    }
    assert daemon.settle() == {}, "nothing changed"

    write_jsonl(daemon.pool / "a.jsonl", [*POOL_A, alpaca("Name a city.", "Turin")])
    started = daemon.settle()
    assert (started["raw_pool"], started["sample_scores"]) == ({a}, {a})
    assert "probe_baseline" not in started, "the probes came out the same"

    write_jsonl(daemon.pool / "sub" / "c.jsonl", [alpaca("Name a lake.", "Garda")])
    started = daemon.settle()
    assert started["sample_scores"] == {daemon.shard("sub/c.jsonl")}

    (daemon.pool / "b.jsonl").unlink()
    assert "sample_scores" not in daemon.settle()
    assert b not in daemon.instance.get_dynamic_partitions(str(SHARDS.name))


def test_nothing_is_asked_for_before_what_it_is_made_from_is_there(daemon: Daemon) -> None:
    assert set(daemon.requested()) == {"base_model"}, "no file is known yet"


def test_a_lost_history_is_taken_up_again_without_scoring_anything(daemon: Daemon) -> None:
    daemon.settle()
    store = WorkspaceResource(root=str(daemon.workspace.root)).store
    before = store.query("SELECT (SELECT count(*) FROM pair_scores), (SELECT count(*) FROM scoring_costs)").row(0)
    with dg.DagsterInstance.ephemeral() as fresh:
        again = Daemon(daemon.workspace, fresh)
        assert set(again.settle()) >= {"raw_pool", "sample_scores", "selected_subset"}
    after = store.query("SELECT (SELECT count(*) FROM pair_scores), (SELECT count(*) FROM scoring_costs)").row(0)
    assert after == before, "no forward"


def test_unchanged_probes_start_nothing_and_changed_ones_every_shard(daemon: Daemon) -> None:
    daemon.settle()
    probes = daemon.workspace.root / "probes" / "probes.jsonl"
    probes.write_text(probes.read_text() + "\n\n")
    started = daemon.settle()
    assert started == {"probe_set": {None}}, "other bytes, the same probes"
    write_jsonl(probes, [alpaca("How many legs has an ant?", "Six.", stratum="facts"), *PROBES[1:]])
    started = daemon.settle()
    assert started["sample_scores"] == {daemon.shard("a.jsonl"), daemon.shard("b.jsonl")}
    assert started["selected_subset"] == {"full", "icon"} or started["selected_subset"] == {"icon"}


def test_a_changed_setting_or_code_starts_what_is_made_with_it(daemon: Daemon, make_workspace: MakeWorkspace) -> None:
    daemon.settle()
    daemon.restart(make_workspace(**{**UNATTENDED, "controls": {"lengths": [8, 32], "draws": 1}}))
    started = daemon.settle()
    assert started["sample_scores"] == {daemon.shard("a.jsonl"), daemon.shard("b.jsonl")}
    assert "raw_pool" not in started
    assert "probe_baseline" not in started


def test_a_setting_counts_at_the_next_tick_without_a_restart(daemon: Daemon) -> None:
    daemon.settle()
    change(daemon.workspace, "controls", {"lengths": [8, 32], "draws": 1})
    started = daemon.settle()
    assert started["sample_scores"] == {daemon.shard("a.jsonl"), daemon.shard("b.jsonl")}
    assert not {"raw_pool", "probe_set", "base_model", "probe_baseline"} & started.keys()


def test_a_budget_that_follows_the_pool_or_the_selection_starts_every_shard(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace(**UNATTENDED, probes={"count": 4, "budget": "auto", "exact_pairs": 30})
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(workspace, instance)
        daemon.settle()
        more = [alpaca("Name a lake.", "Garda"), alpaca("Name a hill.", "Superga")]
        write_jsonl(daemon.pool / "c.jsonl", more)  # 32 pairs, where there were 24
        started = daemon.settle()
        every = {daemon.shard(file) for file in ("a.jsonl", "b.jsonl", "c.jsonl")}
        assert (started["raw_pool"], started["sample_scores"]) == ({daemon.shard("c.jsonl")}, every)
        assert started["selected_subset"] == {"full", "icon"}
        change(workspace, "selection", {**UNATTENDED["selection"], "fraction": 0.3})
        started = daemon.settle()
        assert (started["sample_scores"], started["selected_subset"]) == (every, {"full", "icon"})


def test_only_the_arm_that_a_setting_is_for_is_chosen_again(make_workspace: MakeWorkspace) -> None:
    selection = {"arms": ["full", "icon", "icon_stratified"], "fraction": 0.5, "length_strata": 2}
    workspace = make_workspace(automation={"scoring": "on_change"}, selection=selection)
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(workspace, instance)
        daemon.settle()
        change(workspace, "selection", {**selection, "length_strata": 3})
        assert daemon.settle()["selected_subset"] == {"icon_stratified"}


def test_a_shard_that_fails_is_not_asked_for_for_ever_and_holds_up_no_other(daemon: Daemon) -> None:
    daemon.settle()
    write_jsonl(daemon.pool / "c.jsonl", [alpaca("Name a lake.", "Garda")])
    write_jsonl(daemon.pool / "d.jsonl", [alpaca("Name a hill.", "Superga")])
    daemon.discover()
    (daemon.pool / "c.jsonl").unlink()  # gone between discovery and ingest
    asked = daemon.requested()
    assert len(asked["raw_pool"]) == 2
    daemon.launch(asked)
    for _ in range(8):
        asked = daemon.requested()
        assert not asked.get("raw_pool"), "the failed one is not asked for again"
        daemon.launch(asked)
    scores = WorkspaceResource(root=str(daemon.workspace.root)).store.query("SELECT instruction FROM current_scores")
    assert "Name a hill." in scores["instruction"]


def test_training_follows_only_when_the_settings_say_so(make_workspace: MakeWorkspace) -> None:
    def conditions(train: bool) -> set[str]:
        defs = build_defs(make_workspace(**{**UNATTENDED, "automation": {"scoring": "on_change", "train": train}}))
        return {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs() if spec.automation_condition}

    assert "checkpoint" not in conditions(train=False)
    assert conditions(train=True) - conditions(train=False) == {
        "checkpoint",
        "base_eval",
        "eval_results",
        "leaderboard",
        "report",
    }


@pytest.mark.parametrize("scoring", ["nightly", "on_change", "off"])
def test_there_is_one_launcher(make_workspace: MakeWorkspace, scoring: str) -> None:
    defs = build_defs(make_workspace(automation={"scoring": scoring}))
    conditions = [spec for spec in defs.resolve_all_asset_specs() if spec.automation_condition]
    running = [s.name for s in defs.schedules or () if s.default_status.value == "RUNNING"]
    running += [s.name for s in defs.sensors or () if s.name == "changes"]
    assert running == {"nightly": [NIGHTLY], "on_change": ["changes"], "off": []}[scoring]
    assert bool(conditions) == (scoring == "on_change")


def test_the_schedule_keeps_the_settings_clock_and_waits_for_the_last_night(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace(automation={"cron": "30 3 * * *", "time_zone": "Europe/Berlin"})
    defs = build_defs(workspace)
    schedule: Any = defs.resolve_schedule_def(NIGHTLY)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 3 * * *", "Europe/Berlin")
    with dg.DagsterInstance.local_temp() as instance:
        context = dg.build_schedule_context(instance)
        assert len(schedule.evaluate_tick(context).run_requests) == 1
        instance.create_run_for_job(defs.resolve_job_def(NIGHTLY), status=dg.DagsterRunStatus.STARTED)
        tick = schedule.evaluate_tick(context)
        assert not tick.run_requests
        assert "is not finished" in tick.skip_message
    with pytest.raises(IconError, match=r"automation.cron: 'every night' is not a cron expression"):
        build_defs(make_workspace(automation={"cron": "every night"}))


def test_discovery_reports_each_version_once_and_keeps_its_cursor_small(daemon: Daemon) -> None:
    first = daemon.discover()
    assert len(first) == 3, "two shards and the probes"
    assert daemon.discover() == {}
    os.utime(daemon.pool / "a.jsonl", ns=(1, 1))
    assert daemon.discover() == {}, "touched, not changed"
    write_jsonl(daemon.pool / "a.jsonl", POOL_A[:2])
    changed = daemon.discover()
    assert len(changed) == 1
    assert set(changed.values()).isdisjoint(first.values())
    assert len(json.loads(daemon.cursors["discover_pool"])) == 2
    daemon.settle()
    daemon.discover()
    assert json.loads(daemon.cursors["discover_pool"]) == {}, "what is ingested is on record"


def test_a_check_says_how_many_shards_are_stale_and_why(daemon: Daemon, make_workspace: MakeWorkspace) -> None:
    def said() -> str | None:
        context = dg.build_sensor_context(
            daemon.instance,
            cursor=daemon.cursors.get("report_freshness"),
            resources={"icon": WorkspaceResource(root=str(daemon.workspace.root))},
        )
        result: Any = daemon.defs.resolve_sensor_def("report_freshness")(context)
        daemon.cursors["report_freshness"] = result.cursor
        return result.asset_events[0].description if result.asset_events else None

    daemon.settle()
    assert said() == "all 2 shards are current"
    assert said() is None, "nothing new to say"
    write_jsonl(daemon.pool / "a.jsonl", POOL_A[:2])
    (daemon.pool / "b.jsonl").unlink()
    write_jsonl(daemon.pool / "c.jsonl", POOL_A[2:])
    assert said() == "1 of 3 shards new, 1 of 3 shards stale, 1 of 3 shards removed (text)"
    daemon.settle()
    daemon.restart(make_workspace(**{**UNATTENDED, "controls": {"lengths": [8, 32], "draws": 1}}))
    # The fixture has laid out its files again: b is back, a is as it was.
    assert said() == "1 of 3 shards new, 2 of 3 shards stale (settings, text)"


def test_a_tick_that_was_cut_off_is_made_again(daemon: Daemon) -> None:
    first = daemon.discover()
    daemon.cursors.clear()
    assert daemon.discover() == first


def test_what_is_no_file_is_reported_once_unread_and_again_when_it_is_one(daemon: Daemon) -> None:
    for folder in (daemon.pool, daemon.workspace.root / "probes"):
        os.mkfifo(folder / "pipe.jsonl")
        (folder / "later.jsonl").symlink_to(".later")
    assert len(daemon.discover()) == 5, "four shards and the probes"
    assert daemon.discover() == {}
    daemon.launch({"raw_pool": {*daemon.instance.get_dynamic_partitions(str(SHARDS.name))}})
    assert daemon.discover() == {}
    assert json.loads(daemon.cursors["discover_pool"]) == {}, "what is quarantined is on record"
    for folder in (daemon.pool, daemon.workspace.root / "probes"):
        write_jsonl(folder / ".later", POOL_A[:1])
    assert len(daemon.discover()) == 2


def test_a_half_written_file_is_waited_for(daemon: Daemon, make_workspace: MakeWorkspace) -> None:
    daemon.restart(make_workspace(**UNATTENDED, pool={"settle_seconds": 3600}))
    assert [name for name in daemon.discover() if name != "probes"] == []
    assert daemon.instance.get_dynamic_partitions(str(SHARDS.name)) == []
    for file in daemon.pool.iterdir():
        os.utime(file, (1, 1))
    assert len(daemon.discover()) >= 2


def test_a_missing_folder_is_said_and_retires_nothing(daemon: Daemon) -> None:
    daemon.settle()
    away: Path = daemon.pool.rename(daemon.workspace.root / "away")
    context = dg.build_sensor_context(
        daemon.instance, resources={"icon": WorkspaceResource(root=str(daemon.workspace.root))}
    )
    said = daemon.defs.resolve_sensor_def("discover_pool")(context)
    assert isinstance(said, dg.SkipReason)
    assert "no such folder" in str(said.skip_message)
    away.rename(daemon.pool)
    assert len(daemon.instance.get_dynamic_partitions(str(SHARDS.name))) == 2


def test_thousands_of_files_are_taken_up_over_a_few_ticks(daemon: Daemon) -> None:
    for number in range(900):
        (daemon.pool / f"{number:04}.jsonl").write_text(json.dumps(alpaca(f"Say {number}.", str(number))) + "\n")
    reported = [len([name for name in daemon.discover() if name != "probes"]) for _ in range(4)]
    assert reported == [400, 400, 102, 0]
    assert len(daemon.instance.get_dynamic_partitions(str(SHARDS.name))) == 902
