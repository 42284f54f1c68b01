"""The plan says beforehand what a run then does, and every pass leaves its cost on record."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest

from icon_assets import resources
from icon_assets.core.errors import IconError
from icon_assets.definitions import build_assets
from icon_assets.progress import plan_lines
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, SCORING_STAGES, alpaca, change, write_jsonl

MakeWorkspace = Callable[..., Workspace]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def run(workspace: Workspace, instance: dg.DagsterInstance, *stages: str) -> None:
    outcomes = list(run_stages(build_assets(workspace), workspace, instance, stages or SCORING_STAGES))
    assert [outcome.error for outcome in outcomes if outcome.error] == []


def test_a_plan_announces_what_the_run_then_computes(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    icon = WorkspaceResource(root=str(workspace.root))
    with pytest.raises(IconError, match="base_model: not materialized yet"):
        icon.plan()
    run(workspace, instance, "raw_pool", "probe_set", "base_model")
    plan = icon.plan()
    assert (plan.pairs, plan.exact_pairs) == (6 * 4, 6 * 4)
    assert plan.shards["new_pairs"].to_list() == [16, 8], "the sample of both shards counts in the first"
    assert plan.speed is not None
    assert plan.speed.measured == "a trial just now"
    assert plan.naive.flops > 2 * plan.price.flops
    assert any("24 pairs" in line for line in plan_lines(plan))

    run(workspace, instance)
    spent = icon.store.query(
        "SELECT sum(pairs)::BIGINT AS pairs, sum(tokens)::BIGINT AS tokens, sum(flops)::BIGINT AS flops "
        "FROM scoring_costs"
    )
    assert spent["pairs"].item() == plan.pairs + plan.control_pairs
    assert plan.price.tokens == pytest.approx(spent["tokens"].item(), rel=0.02)
    assert plan.price.flops == pytest.approx(spent["flops"].item(), rel=0.02)


def test_a_context_is_priced_in_each_forward_it_stands_in(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(scoring={"tokens_per_forward": 100})
    icon = WorkspaceResource(root=str(workspace.root))
    run(workspace, instance, "raw_pool", "probe_set", "base_model")
    plan = icon.plan()
    run(workspace, instance)
    spent = icon.store.query("SELECT sum(tokens)::BIGINT, sum(pairs)::BIGINT, sum(forwards)::BIGINT FROM scoring_costs")
    tokens, pairs, forwards = spent.row(0)
    assert forwards > 10, "or every context would stand in one forward only"
    assert pairs == plan.pairs + plan.control_pairs
    assert plan.price.tokens == pytest.approx(tokens, rel=0.1)


def test_the_speed_of_another_device_prices_nothing(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    run(workspace, instance)
    icon = WorkspaceResource(root=str(workspace.root))
    costs = icon.store.query("SELECT * EXCLUDE (peak_share) FROM scoring_costs")
    elsewhere = costs.with_columns(device=pl.lit("a GPU"), seconds=pl.lit(1e-6), created_at=pl.lit(datetime.now(UTC)))
    icon.store.append("scoring_costs", elsewhere)
    write_jsonl(workspace.root / "pool" / "a.jsonl", [*POOL_A, alpaca("Name a city in Italy.", "Turin")])
    run(workspace, instance, "raw_pool")
    speed = icon.plan().speed
    assert speed is not None
    assert (speed.device, speed.measured) == (costs["device"][0], "earlier runs")
    assert speed.tokens_per_second < 10**8


def test_a_finished_pool_needs_nothing_and_no_model(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    run(workspace, instance)
    icon = WorkspaceResource(root=str(workspace.root))
    monkeypatch.setattr(resources, "load", lambda *_: pytest.fail("the model was loaded"))
    resources._cached_model.cache_clear()
    resources._cached_engine.cache_clear()
    plan = icon.plan()
    assert (plan.pairs, plan.control_pairs, plan.price.tokens) == (0, 0, 0)
    assert "Nothing to compute" in "\n".join(plan_lines(plan))

    write_jsonl(workspace.root / "pool" / "a.jsonl", [*POOL_A, alpaca("Name a city in Italy.", "Turin")])
    run(workspace, instance, "raw_pool")
    plan = icon.plan()
    assert (plan.pairs, plan.control_pairs) == (4, 0), "one new row of pairs, priced from what earlier runs cost"
    assert plan.to_json()["shards"][0]["unscored_samples"] == 1


def test_a_new_probe_is_priced_with_the_context_of_every_sample(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    run(workspace, instance)
    more = make_workspace(probes={"count": 5})
    run(more, instance, "probe_set")
    icon = WorkspaceResource(root=str(more.root))
    before = icon.store.query("SELECT sum(tokens)::BIGINT FROM scoring_costs").item()
    plan = icon.plan()
    run(more, instance)
    spent = icon.store.query("SELECT sum(tokens)::BIGINT FROM scoring_costs").item() - before
    assert plan.price.tokens == pytest.approx(spent, rel=0.1)


def test_reading_samples_is_priced_where_an_arm_asks_for_it(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(selection={"arms": ["icon", "perplexity"], "fraction": 0.3})
    run(workspace, instance)
    icon = WorkspaceResource(root=str(workspace.root))
    plan = icon.plan()
    assert (plan.pairs, plan.unread_samples) == (0, 6)
    assert "to read      6 samples" in "\n".join(plan_lines(plan))
    run(workspace, instance, "sample_features")
    spent = icon.store.query(
        "SELECT sum(tokens)::BIGINT AS tokens, sum(flops)::BIGINT AS flops FROM scoring_costs WHERE work = 'features'"
    )
    assert plan.reading.tokens == spent["tokens"].item()
    assert plan.reading.flops == spent["flops"].item()
    assert icon.plan().unread_samples == 0
    change(workspace, "selection", {"arms": ["icon"], "fraction": 0.3})
    write_jsonl(workspace.root / "pool" / "a.jsonl", [*POOL_A, alpaca("Name a city in Italy.", "Turin")])
    without = WorkspaceResource(root=str(workspace.root)).plan()
    assert (without.unread_samples, without.reading.tokens) == (0, 0), "no arm asks for it any more"


def test_a_budget_limits_the_plan_and_the_run(make_workspace: MakeWorkspace, instance: dg.DagsterInstance) -> None:
    probes = [alpaca(f"What is {n} times {n + 3}?", f"It is {n * (n + 3)}.", stratum="sums") for n in range(40)]
    workspace = make_workspace(probes={"count": 30, "budget": 0.5, "near_duplicate": 1.0})
    write_jsonl(workspace.root / "probes" / "probes.jsonl", probes)
    write_jsonl(workspace.root / "pool" / "c.jsonl", [alpaca(f"Name number {n}.", f"{n * 7}") for n in range(90)])
    icon = WorkspaceResource(root=str(workspace.root))
    run(workspace, instance, "raw_pool", "probe_set", "base_model")
    plan = icon.plan()
    assert plan.exact_pairs == 96 * 30
    assert 0.45 * plan.exact_pairs < plan.pairs < 0.6 * plan.exact_pairs
    run(workspace, instance)
    scores = icon.store.query("SELECT n_probes, standard_error FROM current_scores WHERE control = 'none'")
    assert scores.height == 96, "every sample has an estimate"
    assert ((scores["standard_error"] == 0) == (scores["n_probes"] == 30)).all()
    assert scores["n_probes"].min() >= 5  # pyright: ignore
    assert scores["n_probes"].sum() < 0.75 * plan.exact_pairs
    assert icon.plan().pairs == 0, "nothing is left to do"
