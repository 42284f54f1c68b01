"""What a change of the pool, the probes or the settings makes stale, what the plan says of it, and what is scored
again."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from icon_assets.core.digests import digest
from icon_assets.core.inputs.source_files import NO_KEYS, shard_key
from icon_assets.definitions import build_assets
from icon_assets.progress import plan_lines
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, SCORING_STAGES, alpaca, write_jsonl
from icon_assets_tests.core.inputs.test_ingest import TWINS

MakeWorkspace = Callable[..., Workspace]


class Team:
    """A scored workspace, and what a team does to it."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance) -> None:
        self.workspace = workspace
        self.instance = instance
        self.pool = workspace.root / "pool"
        self.run()

    @property
    def icon(self) -> WorkspaceResource:
        """A new one each time, as in each run."""
        return WorkspaceResource(root=str(self.workspace.root))

    def run(self) -> int:
        """Everything up to the scores; returns the pairs that were computed."""
        outcomes = list(run_stages(build_assets(self.workspace), self.workspace, self.instance, SCORING_STAGES))
        assert [outcome.error for outcome in outcomes if outcome.error] == []
        return sum(outcome.metadata["new_pairs"] for outcome in outcomes if outcome.asset == "sample_scores")

    def plan(self) -> dict[str, dict[str, Any]]:
        """The plan's rows by file; only what is not zero."""
        rows = self.icon.plan().shards.to_dicts()
        return {
            row["file"]: {name: value for name, value in row.items() if value and name not in ("shard", "file")}
            for row in rows
        }

    def texts(self) -> set[str]:
        return set(self.icon.store.query("SELECT instruction FROM current_scores")["instruction"])


@pytest.fixture
def team(make_workspace: MakeWorkspace) -> Iterator[Team]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Team(make_workspace(), instance)


def test_nothing_is_planned_and_no_run_started_for_an_unchanged_pool(team: Team) -> None:
    runs = len(team.instance.get_runs())
    assert {name: row["status"] for name, row in team.plan().items()} == {
        "a.jsonl": "unchanged",
        "b.jsonl": "unchanged",
    }
    assert team.run() == 0
    started = [run.asset_selection for run in team.instance.get_runs()[: len(team.instance.get_runs()) - runs]]
    names = {key.to_user_string() for keys in started for key in keys or ()}
    assert not names & {"raw_pool", "sample_scores"}


def test_an_edited_line_is_the_only_sample_scored_again(team: Team) -> None:
    write_jsonl(team.pool / "a.jsonl", [*POOL_A[:2], alpaca("Name a city.", "Turin"), POOL_A[3]])
    assert team.plan()["a.jsonl"] == {
        "status": "stale",
        "because": "text",
        "samples": 4,
        "new_samples": 1,
        "removed_samples": 1,
        "unchanged_samples": 3,
        "unscored_samples": 1,
        "new_pairs": 4,
    }
    assert team.plan()["b.jsonl"]["status"] == "unchanged"
    assert any(
        "stale     a.jsonl (text): 1 new, 1 removed, 3 unchanged; 4 new pairs" in line
        for line in plan_lines(team.icon.plan())
    )
    assert team.run() == 4
    assert "Name a city." in team.texts()
    assert POOL_A[2]["instruction"] not in team.texts()


def test_a_renamed_and_a_split_file_score_nothing_again(team: Team) -> None:
    (team.pool / "b.jsonl").rename(team.pool / "renamed.jsonl")
    (team.pool / "a.jsonl").unlink()
    write_jsonl(team.pool / "a1.jsonl", POOL_A[:2])
    write_jsonl(team.pool / "more" / "a2.jsonl", POOL_A[2:])
    plan = team.plan()
    assert {name: row["status"] for name, row in plan.items()} == {
        "a1.jsonl": "new",
        "more/a2.jsonl": "new",
        "renamed.jsonl": "new",
        "a.jsonl": "removed",
        "b.jsonl": "removed",
    }
    assert not any(row.get("new_pairs") or row.get("removed_samples") for row in plan.values())
    before = team.texts()
    assert team.run() == 0
    assert team.texts() == before


def test_a_deleted_file_leaves_the_views_and_stays_for_audits_until_it_is_back(team: Team) -> None:
    (team.pool / "b.jsonl").rename(team.pool.parent / "b.jsonl")
    assert team.plan()["b.jsonl"] == {"status": "removed", "removed_samples": 2}, "one of three stands in a.jsonl too"
    assert team.run() == 0
    store = team.icon.store
    assert team.texts() == {row["instruction"] for row in POOL_A}
    assert store.query("SELECT count(*) FROM removed_samples").item() == len(POOL_B)
    assert store.query("SELECT file FROM removed_shards")["file"].to_list() == ["b.jsonl"]
    (team.pool.parent / "b.jsonl").rename(team.pool / "b.jsonl")
    assert team.run() == 0
    assert team.texts() == {row["instruction"] for row in [*POOL_A, *POOL_B]}
    assert store.query("SELECT count(*) FROM removed_samples").item() == 0


def test_a_touched_file_is_read_once_and_nothing_else(team: Team) -> None:
    os.utime(team.pool / "a.jsonl", ns=(1, 1))
    assert team.plan()["a.jsonl"]["status"] == "unchanged"
    assert team.run() == 0
    mtime = team.icon.store.query("SELECT mtime_ns FROM shards WHERE file = 'a.jsonl'").item()
    assert mtime == 1, "the next time it is not even read"


def test_a_file_that_is_being_written_to_is_left_by_the_plan_and_waited_for_by_the_run(
    make_workspace: MakeWorkspace,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        team = Team(make_workspace(pool={"settle_seconds": 1.5}), instance)
        line = json.dumps(alpaca("Name a city.", "Turin"))
        (team.pool / "c.jsonl").write_text(line[:20])
        plan = team.icon.plan()
        assert plan.settling == ["c.jsonl"]
        assert "c.jsonl" not in plan.shards["file"]
        (team.pool / "c.jsonl").write_text(line)
        assert team.run() == 4
        assert "Name a city." in team.texts()


@pytest.mark.parametrize(
    ("settings", "reason", "pairs"),
    [
        ({"scoring": {"max_context_tokens": 128, "max_prompt_tokens": 64, "max_response_tokens": 32}}, "settings", 24),
        (
            {
                "scoring": {
                    "max_context_tokens": 128,
                    "max_prompt_tokens": 64,
                    "max_response_tokens": 64,
                    "separator": "\n",
                }
            },
            "settings",
            24,
        ),
        ({"controls": {"lengths": [8, 32], "draws": 1}}, "settings", 0),
        ({"probes": {"count": 5}}, "probes", 6),
        ({"model": {"dtype": "bfloat16", "device": "cpu"}}, "model", 24),
    ],
)
def test_a_changed_setting_makes_every_shard_stale_and_says_which_part(
    make_workspace: MakeWorkspace, settings: dict[str, Any], reason: str, pairs: int
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        workspace = make_workspace()
        Team(workspace, instance)
        if "model" in settings:
            settings = {"model": {**workspace.settings.model.model_dump(), **settings["model"]}}
        again = make_workspace(**settings)
        upstream = ("probe_set", "base_model")
        list(run_stages(build_assets(again), again, instance, upstream))
        plan = WorkspaceResource(root=str(again.root)).plan()
        assert plan.shards["status"].to_list() == ["stale", "stale"]
        assert set(plan.shards["because"]) == {reason}
        assert plan.exact_pairs == pairs
        assert (
            sum(
                o.metadata["new_pairs"]
                for o in run_stages(build_assets(again), again, instance, SCORING_STAGES)
                if o.asset == "sample_scores"
            )
            == pairs
        )


def test_the_plan_says_when_the_probes_or_the_model_will_be_made_again(
    team: Team, make_workspace: MakeWorkspace
) -> None:
    assert team.icon.plan().outdated == {}
    make_workspace(probes={"count": 3})
    assert team.icon.plan().outdated == {"probe_set": "count"}


def test_a_pool_ingested_under_former_keys_keeps_them_and_takes_a_file_named_to_collide(
    make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    for name in ("a.jsonl", "b.jsonl"):
        (workspace.root / "pool" / name).rename(workspace.root / "pool" / f"{name[0]}{TWINS[0]}")
    with dg.DagsterInstance.ephemeral() as instance:
        with monkeypatch.context() as earlier:
            shortened = lambda file, on_record=NO_KEYS: shard_key(file)[: 8 - len(digest(file))]  # noqa: E731
            earlier.setattr("icon_assets.core.inputs.source_files.shard_key", shortened)
            team = Team(workspace, instance)
        former = set(instance.get_dynamic_partitions("shard"))
        assert {len(shard.split("-")[-1]) for shard in former} == {8}
        runs = len(instance.get_runs())
        assert team.run() == 0
        started = instance.get_runs()[:-runs]
        assert [run.tags["dagster/partition"] for run in started if "dagster/partition" in run.tags] == []
        (workspace.root / "pool" / f"a{TWINS[0]}").rename(workspace.root / "pool" / "aside")
        write_jsonl(workspace.root / "pool" / f"a{TWINS[1]}", [alpaca("New?", "Yes.")])
        assert team.run() == 4
        (workspace.root / "pool" / "aside").rename(workspace.root / "pool" / f"a{TWINS[0]}")
        assert team.run() == 0, "what comes back finds its rows"
        assert former < set(instance.get_dynamic_partitions("shard"))
        assert len(instance.get_dynamic_partitions("shard")) == 3
        assert len(team.texts()) == 7
