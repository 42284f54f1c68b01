"""Arms and their trust figures as assets, on a tiny model."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from icon_assets import cli
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets, build_defs
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import SCORING_STAGES, alpaca, change, lay_out

ARMS = ["full", "random", "length_matched", "longest", "icon", "icon_peers", "icon_stratified", "lowest"]
SELECTION = ("selected_subset", "selection_trust")
ROWS = [
    alpaca(f"Say something about {n}.", f"The number {n * 17} is {'very ' * (n % 7)}large.", level=n % 3)
    for n in range(40)
]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Workspace:
    """A workspace of 40 samples with their scores."""
    files = {"a.jsonl": ROWS[:25], "b.jsonl": [*ROWS[25:], ROWS[0]]}
    workspace = lay_out(
        tmp_path_factory.mktemp("scored") / "workspace", tiny_model_dir, files, selection={"arms": ARMS}
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert [
            o.error for o in run_stages(build_assets(workspace), workspace, instance, SCORING_STAGES) if o.error
        ] == []
    return workspace


@pytest.fixture
def workspace(scored: Workspace, copy_of: Callable[[Workspace], Workspace]) -> Workspace:
    return copy_of(scored)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def run(workspace: Workspace, instance: dg.DagsterInstance, **selection: object) -> dict[str, Outcome]:
    if selection:
        change(workspace, "selection", selection)
    workspace = Workspace.load(workspace.root)
    return {o.name: o for o in run_stages(build_assets(workspace), workspace, instance, SELECTION)}


def errors(outcomes: dict[str, Outcome]) -> list[str]:
    return [outcome.error for outcome in outcomes.values() if outcome.error]


def test_every_arm_is_selected_and_judged_and_a_second_run_keeps_all(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    first = run(workspace, instance)
    assert errors(first) == []
    store = Store(workspace.store_dir)
    sizes = dict(store.query("SELECT arm, count(*) FROM selections GROUP BY arm").iter_rows())
    assert sizes == {arm: 40 if arm == "full" else 6 for arm in ARMS}
    peers, plain = (
        store.query("SELECT sample_id FROM selections WHERE arm = $arm", {"arm": arm})["sample_id"].to_list()
        for arm in ("icon_peers", "icon")
    )
    assert peers != plain
    figures = store.query("SELECT arm, figure, against, value FROM trust_figures")
    assert set(figures["arm"]) == set(ARMS)
    per_arm = dict(figures.group_by("arm").agg(pl.col("figure").n_unique()).iter_rows())
    assert per_arm == {arm: {"full": 3, "random": 5, "length_matched": 5, "longest": 5}.get(arm, 6) for arm in ARMS}
    overlaps = figures.filter((pl.col("figure") == "arm_overlap") & (pl.col("against") == "full"))
    assert overlaps["value"].to_list() == [1.0] * 7
    strata = figures.filter((pl.col("figure") == "stratum_share") & (pl.col("arm") == "full"))
    assert strata.sort("against").select("against", "value").rows() == [("a.jsonl", 25 / 40), ("b.jsonl", 15 / 40)]
    again = run(workspace, instance)
    assert errors(again) == []
    assert not any(outcome.metadata["changed"] for outcome in again.values())


def test_a_setting_changes_only_the_arms_that_use_it(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    arms = ["random", "icon", "icon_stratified"]
    assert errors(run(workspace, instance, arms=arms)) == []
    changed = run(workspace, instance, arms=arms, length_strata=3)
    assert {name for name, o in changed.items() if o.metadata["changed"] and name.startswith("selected")} == {
        "selected_subset[icon_stratified]"
    }


def test_a_token_budget_gives_every_arm_as_many_training_tokens(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    outcomes = run(
        workspace, instance, arms=["full", "random", "longest", "length_matched"], fraction=0.3, budget="tokens"
    )
    assert errors(outcomes) == [], "and the check of its size agrees"
    made = {name: o.metadata for name, o in outcomes.items() if name.startswith("selected")}
    budget = made["selected_subset[random]"]["token_budget"]
    assert budget == pytest.approx(0.3 * made["selected_subset[full]"]["pool_training_tokens"])
    for name, figures in made.items():
        if "full" not in name:
            assert 0.8 * budget < figures["training_tokens"] <= budget, name
    assert made["selected_subset[longest]"]["samples"] < made["selected_subset[random]"]["samples"]


def test_an_arm_that_can_not_be_had_stops_no_other(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    outcomes = run(workspace, instance, arms=["random", "rds", "icon_selector"])
    assert [o.error is None for name, o in outcomes.items() if name.startswith("selected")] == [True, False, False]
    assert "probe_features: not materialized yet" in str(outcomes["selected_subset[rds]"].error)
    assert "predicted_scores: 2 of 2 shards are not made yet" in str(outcomes["selected_subset[icon_selector]"].error)
    assert outcomes["selection_trust[random]"].error is None
    assert "selected_subset [rds]: not materialized yet" in str(outcomes["selection_trust[rds]"].error)


def put_features(workspace: Workspace) -> None:
    """What the features of samples and probes would be; the vectors lie in four directions."""
    icon = WorkspaceResource(root=str(workspace.root))
    store = icon.store
    key = icon.score_key().value
    samples = store.query("SELECT DISTINCT sample_id FROM delta.pool ORDER BY ALL")["sample_id"].to_list()
    store.append(
        "sample_features",
        pl.DataFrame(
            [
                {
                    "score_key": key,
                    "origin": "a",
                    "sample_id": each,
                    "n_tokens": 5,
                    "nll_sum": 5.0 + i,
                    "nll_alone": 9.0 + i / 2,
                    "truncated": False,
                    "embedding": [float(i % 4 == j) + 0.001 * i for j in range(4)],
                }
                for i, each in enumerate(samples)
            ]
        ),
    )
    probes = store.query("SELECT probe_id FROM probes ORDER BY ALL")["probe_id"].to_list()
    store.append(
        "probe_features",
        pl.DataFrame(
            [
                {"score_key": key, "probe_id": each, "embedding": [float(i == j) for j in range(4)]}
                for i, each in enumerate(probes)
            ]
        ),
    )
    recipes = icon.recipes
    for shard in recipes.pool:
        ledger.record(store, recipes.of("sample_features", shard), "made by hand", "run", {"score_key": key})
    ledger.record(store, Recipe("probe_features"), "made by hand", "run", {"score_key": key})


def test_arms_by_features_and_predictions_choose_and_near_duplicates_are_passed_over(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    put_features(workspace)
    arms = ["random", "rds", "perplexity", "ifd"]
    outcomes = run(workspace, instance, arms=arms, fraction=0.1, diversity=0.98)
    assert errors(outcomes) == []
    assert outcomes["selected_subset[random]"].metadata["skipped_near_duplicates"] >= 0
    store = Store(workspace.store_dir)
    sql = """
        SELECT arm, list_sort(list(list_position(embedding, list_max(embedding)))) AS directions FROM selections
        JOIN sample_features USING (sample_id) GROUP BY arm
    """
    assert dict(store.query(sql).iter_rows()) == {arm: [1, 2, 3, 4] for arm in arms}
    near = store.query("SELECT value FROM trust_figures WHERE figure = 'near_duplicates' AND against = 'embeddings'")
    assert near["value"].to_list() == [0.0] * 4


def test_the_command_says_what_a_reader_should_know(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("ICON_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert cli.main(["-w", str(workspace.root), "trust"]) == 1
    assert "trust: no figures for any arm; run" in capsys.readouterr().err
    outcomes = run(workspace, instance, arms=["random", "longest", "icon"], fraction=0.4)
    warned = str(outcomes["selection_trust[longest]"].warning)
    assert warned.startswith("check length_does_not_explain_it: 2 of 2 comparisons separate chosen from other samples")
    assert cli.main(["-w", str(workspace.root), "trust"]) == 0
    out = capsys.readouterr().out
    assert "! longest: chosen samples are longer (tokens): length alone separates them from the rest with AUC" in out
    assert cli.main(["-w", str(workspace.root), "trust", "--arm", "icon", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["arm"] for row in report["figures"]} == {"icon"}
    assert all(line.startswith("icon: ") for line in report["warnings"])


def test_every_arm_has_a_place_in_the_graph(workspace: Workspace) -> None:
    change(workspace, "selection", {"arms": [*ARMS, "rds", "perplexity", "ifd", "rico", "icon_selector"]})
    graph = build_defs(Workspace.load(workspace.root)).resolve_asset_graph()
    parents = {key.to_user_string() for key in graph.get(dg.AssetKey("selected_subset")).parent_keys}
    assert parents == {"sample_scores", "sample_features", "probe_features", "predicted_scores"}
