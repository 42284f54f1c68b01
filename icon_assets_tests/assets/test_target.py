"""Choosing for a target: arms whose probes take in turn, and the sealed test, through the whole graph."""

import json
from collections.abc import Callable

import dagster as dg
import polars as pl

from icon_assets.core.evaluation.comparison import last_look
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, STAGES, TRAINING, alpaca, change, write_jsonl

ARMS = ["random", "bm25", "combined", "oracle"]
MEASURED = ("checkpoint", "base_eval", "eval_results", "leaderboard")
SEALED = [
    alpaca("How many sides has a square?", "Four.", stratum="facts"),
    alpaca("Which metal is liquid at room temperature?", "Mercury is liquid.", stratum="facts"),
]
ITEMS = [{"query": f"How many legs have {n} cats?", "choices": [str(4 * n), str(4 * n + 1)], "gold": 0} for n in (2, 3)]


def run(workspace: Workspace, stages: tuple[str, ...]) -> Outcome:
    """Run these stages; returns the leaderboard's outcome."""
    again = Workspace.load(workspace.root)
    with dg.DagsterInstance.ephemeral() as instance:
        outcomes = list(run_stages(build_assets(again), again, instance, stages))
    assert [(outcome.name, outcome.error) for outcome in outcomes if outcome.error] == []
    return next(outcome for outcome in outcomes if outcome.asset == "leaderboard")


def test_arms_for_a_target_are_compared_on_its_sealed_test_and_every_look_counts(
    make_workspace: Callable[..., Workspace],
) -> None:
    evaluation = {
        "multiple_choice": [{"name": "sums", "path": "eval/sums.jsonl"}],
        "held_out": "eval/held_out.jsonl",
        "target": {"samples": "eval/target.jsonl", "choices": "eval/target_items.jsonl"},
        "bootstrap_draws": 200,
    }
    workspace = make_workspace(
        selection={"arms": ARMS, "fraction": 0.4}, evaluation=evaluation, training={**TRAINING, "seeds": [0]}
    )
    for name, rows in (("a", POOL_A), ("b", POOL_B)):
        stratum = {"a": "facts", "b": "talk"}[name]
        write_jsonl(workspace.root / "pool" / f"{name}.jsonl", [{**row, "stratum": stratum} for row in rows])
    write_jsonl(workspace.root / "eval" / "target.jsonl", SEALED)
    write_jsonl(workspace.root / "eval" / "target_items.jsonl", ITEMS)
    first = run(workspace, tuple(stage for stage in STAGES if stage not in ("selection_trust", "report")))
    store = Store(workspace.store_dir)
    assert first.metadata["looks"] == last_look(store) == 1
    results = store.query("SELECT DISTINCT task, metric FROM leaderboard WHERE task LIKE 'target%' ORDER BY ALL").rows()
    assert ("target", "acc") in results
    assert ("target", "perplexity") in results
    assert ("target/facts", "perplexity") in results
    differences = store.query("FROM leaderboard_differences")
    against = {task: set(rows["against"]) for (task,), rows in differences.group_by("task")}
    assert against["target"] == {"random", "bm25", "base"}
    assert against["held_out"] == {"random", "base"}
    chosen = store.query("FROM selections SEMI JOIN subsets USING (arm, subset_id)")
    facts = set(store.query("SELECT sample_id FROM samples WHERE metadata->>'stratum' = 'facts'")["sample_id"])
    assert set(chosen.filter(pl.col("arm") == "oracle")["sample_id"]) <= facts

    change(workspace, "training", {**workspace.settings.training.model_dump(mode="json"), "learning_rate": 1e-2})
    second = run(workspace, MEASURED)
    assert second.metadata["looks"] == last_look(store) == 2
    (said,) = store.query("SELECT max_by(summary, seq) FROM ledger WHERE asset = 'leaderboard'").row(0)
    assert "look 2 at the target" in json.loads(said)["verdicts"]["combined"]
