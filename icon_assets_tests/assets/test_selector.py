"""Direct scores of a share, features, selector and predictions through the graph, on a tiny model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from icon_assets import resources
from icon_assets.core.digests import share_ceiling
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import SCORING_STAGES, alpaca, change, lay_out, write_jsonl

MakeWorkspace = Callable[..., Workspace]
SCORING = {"max_context_tokens": 128, "max_prompt_tokens": 64, "max_response_tokens": 64}
ON_TOP = ("sample_features", "probe_features", "selector", "predicted_scores")
NAMES = ["Loire", "Rhine", "Danube", "Elbe", "Po", "Ebro", "Volga", "Douro"]


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        alpaca(f"Say something of river {n}.", f"The {NAMES[n % 8]} flows {'far ' * (n % 5)}for {n * 37} km.")
        for n in range(first, first + count)
    ]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


@pytest.fixture
def workspace(tmp_path: Path, tiny_model_dir: Path) -> Workspace:
    files = {"a.jsonl": rows(0, 30), "b.jsonl": rows(30, 14)}
    return lay_out(tmp_path / "workspace", tiny_model_dir, files, scoring={**SCORING, "direct_share": 0.7})


def run(
    workspace: Workspace, instance: dg.DagsterInstance, *stages: str, asked: tuple[str, ...] = ON_TOP
) -> dict[str, Outcome]:
    workspace = Workspace.load(workspace.root)
    outcomes = list(
        run_stages(build_assets(workspace), workspace, instance, stages or (*SCORING_STAGES, *ON_TOP), asked=asked)
    )
    assert [(o.name, o.error) for o in outcomes if o.error] == []
    return {outcome.name.split(".")[0]: outcome for outcome in outcomes}


def test_from_a_share_of_direct_scores_to_a_ranking_of_the_whole_pool(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    icon = WorkspaceResource(root=str(workspace.root))
    run(workspace, instance, "raw_pool", "probe_set", "base_model")
    ids = icon.store.query("SELECT DISTINCT sample_id FROM samples")["sample_id"].to_list()
    drawn = [i for i in ids if i < str(share_ceiling(0.7))]
    assert 20 <= len(drawn) < len(ids)
    plan = icon.plan()
    assert plan.pairs == 4 * len(drawn), "what is not drawn is no work"
    assert plan.shards["not_drawn_samples"].sum() == len(ids) - len(drawn)

    first = run(workspace, instance)
    assert sum(o.metadata["new_pairs"] for o in first.values() if o.asset == "sample_scores") == plan.pairs
    assert (icon.plan().pairs, icon.plan().shards["new_samples"].sum()) == (0, 0)
    store = icon.store
    assert sorted(store.query("SELECT DISTINCT sample_id FROM sample_scores")["sample_id"]) == sorted(drawn)
    assert sorted(store.query("SELECT sample_id FROM predicted_scores")["sample_id"]) == sorted(ids)
    (selector,) = store.query("FROM selectors").iter_rows(named=True)
    assert (selector["kind"], selector["n_train"], selector["is_current"]) == ("light", len(drawn), True)
    assert store.query("SELECT count(*) FROM selector_metrics").item() == 4 + 3 + 4
    assert "![Held-out" in first["selector"].metadata["predicted_against_measured"]

    monkeypatch.setattr(resources, "load", lambda *_: pytest.fail("the model was loaded although nothing changed"))
    resources._cached_model.cache_clear()
    resources._cached_engine.cache_clear()
    second = run(workspace, instance)
    assert {o.asset for o in second.values() if o.metadata["changed"]} == set()


def test_growth_reads_and_scores_only_what_is_new(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    run(workspace, instance)
    store = Store(workspace.store_dir)
    scored = set(store.query("SELECT DISTINCT sample_id FROM sample_scores")["sample_id"])
    write_jsonl(workspace.root / "pool" / "c.jsonl", [*rows(44, 10), *rows(0, 3)])
    grown = run(workspace, instance)
    assert [grown[f"sample_features[{shard}"].metadata["new_samples"] for shard in "abc"] == [0, 0, 10]
    assert grown["sample_scores[a"].metadata["changed"] is False
    assert scored < set(store.query("SELECT DISTINCT sample_id FROM sample_scores")["sample_id"]), "the draw is kept"
    assert store.query("SELECT count(DISTINCT sample_id) FROM predicted_scores").item() == 54

    change(workspace, "scoring", {**SCORING, "direct_share": 1.0})
    whole = run(workspace, instance)
    left = 54 - len(
        {i for i in store.query("SELECT sample_id FROM samples")["sample_id"] if i < str(share_ceiling(0.7))}
    )
    assert sum(o.metadata["new_pairs"] for o in whole.values() if o.asset == "sample_scores") == 4 * left
    assert all(o.metadata["new_samples"] == 0 for o in whole.values() if o.asset == "sample_features")


def test_the_papers_classifier_ranks_the_pool_too(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    lora = {"epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.01}
    change(workspace, "selector", {"kind": "lora", "lora": lora, "seed": 6, "top_fraction": 0.5})
    run(workspace, instance)
    store = Store(workspace.store_dir)
    scores = store.query("SELECT score FROM predicted_scores")["score"]
    assert scores.len() == 44
    assert scores.is_between(0, 1).all()
    (selector,) = store.query("FROM selectors").iter_rows(named=True)
    scored = store.query("SELECT count(DISTINCT sample_id) FROM sample_scores").item()
    learned = selector["n_train"]
    held = selector["n_held_out"]
    assert 0 < scored - learned - held < learned, "some chose the epoch"
    crowding = store.query("SELECT metric FROM selector_metrics WHERE metric LIKE 'top_share_%' ORDER BY ALL")
    assert crowding["metric"].to_list() == ["top_share_held_out", "top_share_trained_on"]
    billed = store.query(
        """SELECT sum(pairs)::BIGINT, sum(tokens) > 0, sum(flops) > 0 FROM scoring_costs WHERE "work" = 'selector'"""
    )
    assert billed.row(0) == (2 * (scored - held) + learned + held + 44, True, True), "two epochs, the figures, the pool"
    assert (workspace.root / selector["path"] / "adapter_model.safetensors").is_file()


def test_stages_that_no_arm_needs_are_left_out_unless_asked_for(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    outcomes = run(workspace, instance, "raw_pool", "base_model", "probe_set", *ON_TOP, asked=("probe_features",))
    assert {o.asset for o in outcomes.values()} == {"raw_pool", "base_model", "probe_set", "probe_features"}


def test_too_few_scores_say_what_to_do(make_workspace: MakeWorkspace, instance: dg.DagsterInstance) -> None:
    workspace = make_workspace()
    stages = (*SCORING_STAGES, "sample_features", "selector", "predicted_scores")
    outcomes = list(run_stages(build_assets(workspace), workspace, instance, stages, asked=stages))
    failed = {o.asset: o.error for o in outcomes if o.error}
    assert failed == {
        "selector": "selector: 6 samples are scored under control none, 20 are needed; raise scoring.direct_share, or "
        "materialize sample_scores for more shards",
        "predicted_scores": "selector: not materialized yet; materialize it first",
    }


def test_a_ranking_of_before_is_no_more_in_the_view(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    run(workspace, instance)
    store = Store(workspace.store_dir)
    before = store.query("SELECT DISTINCT selector_id FROM predicted_scores").item()
    change(workspace, "selector", {"folds": 3})
    run(workspace, instance, "selector")
    assert store.query("FROM predicted_scores").is_empty(), "until the new selector has ranked the pool"
    run(workspace, instance, "predicted_scores")
    after = store.query("SELECT DISTINCT selector_id FROM predicted_scores").item()
    assert before != after
    change(workspace, "selector", {})
    run(workspace, instance, "selector", "predicted_scores")
    assert store.query("SELECT DISTINCT selector_id FROM predicted_scores").item() == before
    assert store.query("SELECT count(*) FROM selector_metrics").item() == 2 * 11
    (workspace.root / "pool" / "b.jsonl").unlink()
    run(workspace, instance, "raw_pool")
    assert store.query("SELECT count(*) FROM predicted_scores").item() == 30
