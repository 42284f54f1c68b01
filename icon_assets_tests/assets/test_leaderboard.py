"""What the leaderboard shows: costs from the view, differences and verdicts as tables and plots."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from icon_assets.assets.evaluation import difference_metadata
from icon_assets.core.evaluation.comparison import Difference, as_frame
from icon_assets.core.evaluation.leaderboard import wide_board, wide_differences
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Input, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import change

NOW = datetime.now(UTC)


def difference(arm: str, task: str, metric: str, by: float, verdict: str, against: str = "random") -> Difference:
    return Difference(arm, against, task, metric, by, by - 0.02, by + 0.02, 3, verdict, 100, 0.01, 6)


DIFFERENCES = as_frame(
    [
        difference("icon", "mean", "acc", 0.05, "better"),
        difference("icon", "science", "acc", 0.9, "better"),
        difference("icon", "held_out", "perplexity", -0.01, "not distinguishable"),
        difference("full", "mean", "acc", -0.05, "worse"),
        difference("full", "held_out", "perplexity", -0.2, "better"),
        difference("full", "mean", "acc", 0.01, "not distinguishable", against="base"),
    ]
)


def test_differences_are_shown_per_arm_with_interval_and_verdict() -> None:
    table = wide_differences(DIFFERENCES, "random")
    assert table.columns == ["arm", "held_out perplexity", "mean acc"]
    assert table.rows() == [
        ("full", "-0.200, -0.220 to -0.180 (better)", "-0.050, -0.070 to -0.030 (worse)"),
        ("icon", "-0.010, -0.030 to +0.010", "+0.050, +0.030 to +0.070 (better)"),
    ]


def test_differences_to_each_arm_are_tables_and_those_to_the_first_a_plot() -> None:
    shown = difference_metadata(DIFFERENCES, 0.95)
    assert set(shown) == {"differences_to_random", "differences_to_base", "plot_differences"}
    assert "data:image/png;base64," in str(shown["plot_differences"].value)
    assert sum(len(str(each.value)) for each in shown.values()) < 40_000, "Dagster keeps it in every event"
    assert difference_metadata(as_frame([]), 0.95) == {}


def _row(**values: Any) -> pl.DataFrame:
    return pl.DataFrame([values])


def _measured(store: Store, checkpoint: str, arm: str, seed: int, **settings: Any) -> None:
    result = {
        "checkpoint_id": checkpoint,
        "arm": arm,
        "seed": seed,
        "task": "t",
        "metric": "acc",
        "value": 0.5,
        "stderr": 0.1,
    }
    store.replace("eval_results", _row(**result), checkpoint_id=checkpoint)
    inputs = (Input("checkpoint", f"{arm}|{seed}", checkpoint), Input("held_out", "held_out.jsonl", "digest"))
    recipe = Recipe("eval_results", f"{arm}|{seed}", inputs, settings)
    ledger.record(store, recipe, "digest", "run", {"checkpoint_id": checkpoint})


def _trained(store: Store, arm: str, seed: int, flops: int | None, subset: str = "digest", settings: str = "x") -> None:
    checkpoint = f"{arm}-{seed}"
    text = {"subset_id": subset, "settings": settings, **dict.fromkeys(("path", "digest"), "x")}
    numbers = dict.fromkeys(("n_samples", "n_response_tokens", "n_steps"), 1)
    store.append(
        "checkpoints",
        _row(
            **text,
            **numbers,
            checkpoint_id=checkpoint,
            arm=arm,
            seed=seed,
            model_digest="m",
            n_tokens=1000,
            seconds=1.0,
            final_loss=1.0,
            flops=flops,
            created_at=datetime.now(UTC),
        ),
    )
    _measured(store, checkpoint, arm, seed)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four arms that owe different work of scoring, of which some was done under an earlier key."""
    store = Store(tmp_path)
    model = {"name": "n", "revision": "r", "path": "p", "dtype": "float32", "device": "cpu", "prepared_at": NOW}
    store.append("models", _row(**model, model_digest="m", n_parameters=10))
    for key, created in (("old", datetime(2020, 1, 1, tzinfo=UTC)), ("key", NOW)):
        store.append("score_keys", _row(score_key=key, model_digest="m", settings="{}", created_at=created))
    for key, work, flops in (
        ("key", "pairs", 700),
        ("key", "pairs", 200),
        ("key", "controls", 60),
        ("key", "features", 5),
        ("old", "pairs", 9999),
    ):
        cost = {
            "device": "cpu",
            "engine": "e",
            "pairs": 1,
            "forwards": 1,
            "tokens": flops,
            "seconds": 1.0,
            "peak_flops_per_second": 1.0,
        }
        store.append("scoring_costs", _row(**cost, created_at=NOW, score_key=key, work=work, flops=flops))
    summaries = {
        "icon": {"owes": ["pairs", "controls"], "scoring_tokens": 1},
        "rds": {"owes": ["features"], "scoring_tokens": 0},
        "random": {"owes": [], "scoring_tokens": 0},
        "rico": {"scoring_tokens": 7},
    }
    for arm, summary in summaries.items():
        ledger.record(store, Recipe("selected_subset", arm), "digest", "run", summary)
        _trained(store, arm, 0, 40_000)
    _measured(store, "base-m", "base", 0)
    return store


def test_an_arm_owes_the_scoring_it_waited_for_and_its_training(store: Store) -> None:
    board = {row["arm"]: row for row in store.query("FROM leaderboard").to_dicts()}
    owed = {arm: (row["scoring_flops"], row["scoring_tokens"], row["scoring_seconds"]) for arm, row in board.items()}
    assert owed == {
        "icon": (960, 960, 3.0),
        "rico": (960, 960, 3.0),
        "rds": (5, 5, 1.0),
        "random": (0, 0, 0.0),
        "base": (None, None, None),
    }
    assert {arm: row["total_flops"] for arm, row in board.items()} == {
        "icon": 40_960,
        "rico": 40_960,
        "rds": 40_005,
        "random": 40_000,
        "base": 0,
    }
    shown = wide_board(store.query("FROM leaderboard"))
    costs = ["n_samples", "training_tokens", "scoring_tflop", "training_tflop", "total_tflop"]
    assert shown.columns == ["arm", "n_seeds", "t acc", *costs]
    assert shown.filter(arm="icon")["total_tflop"].item() == pytest.approx(40_960e-12, rel=1e-3)


def _shown(store: Store) -> set[str]:
    return set(store.query("SELECT DISTINCT arm FROM leaderboard")["arm"])


def test_what_was_trained_or_measured_in_another_way_than_the_newest_does_not_stand_beside_it(store: Store) -> None:
    everything = {"icon", "rico", "rds", "random", "base"}
    assert _shown(store) == everything

    _trained(store, "icon", 1, 40_000, settings="another recipe")
    assert _shown(store) == {"icon", "base"}, "only one is trained again so far"
    for arm in ("rico", "rds", "random"):
        _trained(store, arm, 1, 40_000, settings="another recipe")
    assert _shown(store) == everything

    ledger.record(store, Recipe("selected_subset", "rds", settings={"fraction": 0.3}), "larger", "run", {})
    assert _shown(store) == {"base"}, "arms of different sizes"
    _trained(store, "rds", 1, 40_000, subset="larger", settings="another recipe")
    assert _shown(store) == {"rds", "base"}

    _measured(store, "base-m", "base", 0, tasks=["another one"])
    assert _shown(store) == {"base"}


def test_subsets_of_an_earlier_pool_do_not_stand_beside_those_of_the_present_one(store: Store) -> None:
    def choose(arm: str, *shards: str) -> None:
        inputs = tuple(Input("sample_scores", shard, f"scores of {shard}") for shard in shards)
        features = (Input("probe_features", "", "x"),) if arm == "rds" else ()
        subset = f"{arm} of {len(shards)}"
        ledger.record(store, Recipe("selected_subset", arm, (*inputs, *features)), subset, "run", {})
        _trained(store, arm, 0, 40_000, subset=subset)

    for arm in ("icon", "rds", "rico", "random"):
        choose(arm, "a")
    assert _shown(store) == {"icon", "rds", "rico", "random", "base"}, "what else an arm looks at is its own"
    choose("icon", "a", "b")
    choose("rds", "b", "a")
    assert _shown(store) == {"icon", "rds", "base"}


def test_differences_of_other_results_are_not_shown(store: Store) -> None:
    recipe = Recipe("leaderboard")
    difference = dict.fromkeys(("difference", "low", "high", "p_value"), 0.1) | dict.fromkeys(
        ("n_seeds", "n_items", "n_comparisons"), 1
    )
    texts = {"arm": "icon", "against": "random", "task": "t", "metric": "acc", "verdict": "better"}
    store.append("leaderboard_differences", _row(**texts, **difference))
    results = store.query("FROM delta.results_now").item()
    ledger.record(store, recipe, "digest", "run", {"results": results})
    assert store.query("SELECT count(*) FROM leaderboard_differences").item() == 1
    _trained(store, "icon", 1, 40_000)
    assert store.query("SELECT count(*) FROM leaderboard_differences").item() == 0
    ledger.record(store, recipe, "digest", "run", {"results": store.query("FROM delta.results_now").item()})
    assert store.query("SELECT count(*) FROM leaderboard_differences").item() == 1


def test_arms_of_equal_tokens_do_not_stand_beside_arms_of_equal_samples_but_all_of_the_pool_does(store: Store) -> None:
    size = {"fraction": 0.15}
    for arm in ("full", "icon", "random"):
        ledger.record(store, Recipe("selected_subset", arm, settings=size), f"{arm} samples", "run", {})
        _trained(store, arm, 0, 40_000, subset=f"{arm} samples")
    assert _shown(store) == {"full", "icon", "random", "base"}
    ledger.record(
        store, Recipe("selected_subset", "icon", settings={**size, "budget": "tokens"}), "icon tokens", "run", {}
    )
    assert _shown(store) == {"full", "base"}
    _trained(store, "icon", 0, 40_000, subset="icon tokens")
    assert _shown(store) == {"full", "icon", "base"}, "random still has as many samples, whatever their tokens"
    sieved = {**size, "budget": "tokens", "diversity": 0.9}
    ledger.record(store, Recipe("selected_subset", "random", settings=sieved), "random sieved", "run", {})
    _trained(store, "random", 0, 40_000, subset="random sieved")
    assert _shown(store) == {"full", "random", "base"}, "icon may have near-duplicates"


def test_the_leaderboard_is_made_again_when_what_counts_or_how_it_is_compared_has_changed(finished: Workspace) -> None:
    store = Store(finished.store_dir)

    def changed() -> bool:
        loaded = Workspace.load(finished.root)
        (outcome,) = run_stages(build_assets(loaded), loaded, instance, ("leaderboard",))
        assert outcome.error is None
        return outcome.metadata["changed"]

    with dg.DagsterInstance.ephemeral() as instance:
        assert not changed()
        change(finished, "evaluation", {**finished.settings.evaluation.model_dump(mode="json"), "confidence": 0.9})
        assert [changed(), changed()] == [True, False]
        row = store.query("FROM delta.eval_results LIMIT 1")
        store.replace("eval_results", row, checkpoint_id=row["checkpoint_id"].item())
        assert [changed(), changed()] == [True, False], "fewer metrics count"
        spoiled = store.query("FROM delta.leaderboard_differences").with_columns(low=pl.lit(float("nan")))
        store.replace("leaderboard_differences", spoiled)
        assert [changed(), changed()] == [True, False]
