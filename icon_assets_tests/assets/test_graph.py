"""The whole graph on a tiny model, with an ephemeral Dagster instance: products, caching, lineage."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from icon_assets import resources
from icon_assets.core.errors import IconError
from icon_assets.core.model.loading import load as load_model
from icon_assets.core.planning.recipes import made_by
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets, build_defs
from icon_assets.partitions import SHARDS
from icon_assets.runner import Outcome, run_stages, scoring_stages, stages_before_training, stages_of
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, SCORING_STAGES, STAGES, TRAINING, alpaca, change, write_jsonl

MakeWorkspace = Callable[..., Workspace]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def run(workspace: Workspace, instance: dg.DagsterInstance, stages: tuple[str, ...]) -> list[Outcome]:
    workspace = Workspace.load(workspace.root)
    return list(run_stages(build_assets(workspace), workspace, instance, stages))


def score(workspace: Workspace, instance: dg.DagsterInstance) -> dict[str, Outcome]:
    outcomes = run(workspace, instance, SCORING_STAGES)
    assert [o.error for o in outcomes if o.error] == []
    return {outcome.name.split(".")[0]: outcome for outcome in outcomes}


def new_pairs(outcomes: dict[str, Outcome]) -> dict[str, int]:
    """Pairs each scoring asset computed; 0 for what was unchanged."""
    return {
        name: o.metadata["new_pairs"] if o.metadata["changed"] else 0
        for name, o in outcomes.items()
        if name.startswith(("sample_scores", "probe_baseline"))
    }


def control_pairs(outcomes: dict[str, Outcome]) -> dict[str, int]:
    """Probes without context and behind control contexts that each scoring asset computed."""
    return {
        name: o.metadata["control_pairs"] if o.metadata["changed"] else 0
        for name, o in outcomes.items()
        if name.startswith(("sample_scores", "probe_baseline"))
    }


def test_every_asset_is_produced_and_a_second_run_changes_nothing(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    first = run(workspace, instance, STAGES)
    assert [o.error for o in first if o.error] == []
    assert all(o.metadata["changed"] for o in first)
    store = Store(workspace.store_dir)
    assert store.query("SELECT count(*) FROM samples").item() == 7
    assert store.query("SELECT count(*) FROM sample_scores").item() == 6 * 2, "one duplicate, two controls"
    assert sorted(store.query("SELECT DISTINCT arm FROM leaderboard")["arm"]) == [
        "base",
        "full",
        "icon",
        "random",
    ]
    assert store.query("SELECT count(*) FROM checkpoints WHERE is_current").item() == 3

    monkeypatch.setattr(resources, "load", _refuse_to_load)
    resources._cached_model.cache_clear()
    resources._cached_engine.cache_clear()
    second = run(workspace, instance, STAGES)
    assert [o.error for o in second if o.error] == []
    assert [o.warning for o in second if o.asset == "leaderboard"] != [None], "a check that warns is no reason"
    assert {o.asset for o in second if o.metadata["changed"]} == set()
    assert [o.metadata["digest"] for o in first] == [o.metadata["digest"] for o in second]


def test_each_seed_trains_on_a_random_draw_of_its_own(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(selection={"arms": ["random", "icon"], "fraction": 0.5})
    stages = (*SCORING_STAGES, "selected_subset", "checkpoint")
    assert [o.error for o in run(workspace, instance, stages) if o.error] == []
    change(workspace, "training", {**TRAINING, "seeds": [0, 1, 2]})
    second = {o.name: o.metadata["changed"] for o in run(workspace, instance, stages) if not o.error}
    assert {name: second[f"checkpoint[{name}]"] for name in ("random|0", "random|2", "icon|0", "icon|1")} == {
        "random|0": False,
        "random|2": True,
        "icon|0": False,
        "icon|1": True,
    }
    store = Store(workspace.store_dir)
    trained = store.query("SELECT arm, seed, list_sort(list(sample_id)) AS ids FROM training_lineage GROUP BY ALL")
    assert trained.filter(arm="icon")["ids"].n_unique() == 1
    assert trained.filter(arm="random")["ids"].n_unique() == 3
    lineage = store.query(
        "SELECT DISTINCT inputs FROM ledger WHERE asset = 'checkpoint' AND \"partition\" = 'random|2'"
    )
    assert '"partition":"random.2"' in lineage.item()


def test_what_is_kept_counts_again_when_the_settings_are_what_they_were(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(selection={"arms": ["random", "icon"], "fraction": 0.5})

    def board() -> list[tuple[str, int]]:
        assert [o.error for o in run(workspace, instance, STAGES) if o.error] == []
        query = "SELECT DISTINCT arm, seed FROM current_results WHERE arm <> 'base' ORDER BY ALL"
        return Store(workspace.store_dir).query(query).rows()

    def differences() -> pl.DataFrame:
        return Store(workspace.store_dir).query("FROM leaderboard_differences ORDER BY ALL")

    assert board() == [("icon", 0), ("random", 0)]
    before = differences()
    change(workspace, "training", {**TRAINING, "epochs": 2, "seeds": [7]})
    change(workspace, "selection", {"arms": ["longest"], "fraction": 0.3})
    assert board() == [("longest", 7)], "another recipe, another fraction"
    change(workspace, "training", TRAINING)
    change(workspace, "selection", {"arms": ["random", "icon"], "fraction": 0.5})
    assert board() == [("icon", 0), ("random", 0)]
    assert differences().equals(before)
    n_events = Store(workspace.store_dir).query("SELECT count(*) FROM ledger WHERE asset <> 'leaderboard'").item()
    assert board() == [("icon", 0), ("random", 0)]
    after = Store(workspace.store_dir).query("SELECT count(*) FROM ledger WHERE asset <> 'leaderboard'").item()
    assert after == n_events, "once is enough"


def test_an_arm_does_not_choose_from_scores_of_which_some_are_of_before(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(selection={"arms": ["random", "icon"], "fraction": 0.5})
    stages = (*SCORING_STAGES, "selected_subset")
    assert [o.error for o in run(workspace, instance, stages) if o.error] == []
    change(workspace, "scoring", {"max_context_tokens": 50})
    some = run(workspace, instance, ("probe_baseline", "selected_subset"))
    said = {o.name: str(o.error) for o in some if o.error}
    assert set(said) == {"selected_subset[random]", "selected_subset[icon]"}
    assert (
        "sample_scores: 2 of 2 shards are not made yet, or not for the current text, probes, model and settings"
        in said["selected_subset[icon]"]
    )
    assert [o.error for o in run(workspace, instance, stages) if o.error] == []


def _refuse_to_load(*_: Any) -> Any:
    raise AssertionError("the model was loaded although nothing changed")


def test_only_what_changed_is_scored(make_workspace: MakeWorkspace, instance: dg.DagsterInstance) -> None:
    workspace = make_workspace()
    first = score(workspace, instance)
    assert new_pairs(first) == {"probe_baseline": 0, "sample_scores[a": 16, "sample_scores[b": 8}
    controls = control_pairs(first)
    assert controls["probe_baseline"] == 4, "each probe without context"
    stored = Store(workspace.store_dir).query(
        "SELECT DISTINCT seed, length FROM control_scores WHERE control <> 'none'"
    )
    assert sum(controls.values()) == 4 + 4 * stored.height, "each random context once, whichever shard needs it"
    assert 0 < stored.height <= 2 * 2, "two draws at no more than two lengths"
    assert new_pairs(score(workspace, instance)) == {
        "probe_baseline": 0,
        "sample_scores[a": 0,
        "sample_scores[b": 0,
    }

    write_jsonl(workspace.root / "pool" / "a.jsonl", [*POOL_A, alpaca("Count to three.", "One, two, three.")])
    assert new_pairs(score(workspace, instance)) == {
        "probe_baseline": 0,
        "sample_scores[a": 4,
        "sample_scores[b": 0,
    }

    (workspace.root / "pool" / "a.jsonl").rename(workspace.root / "pool" / "renamed.jsonl")
    assert new_pairs(score(workspace, instance)) == {
        "probe_baseline": 0,
        "sample_scores[b": 0,
        "sample_scores[renamed": 0,
    }

    change(workspace, "probes", {"count": 5})
    more_probes = score(workspace, instance)
    assert new_pairs(more_probes) == {
        "probe_baseline": 0,
        "sample_scores[b": 3,
        "sample_scores[renamed": 4,
    }
    moved = more_probes["sample_scores[renamed"].metadata
    assert moved["drift_samples"] == 5, "how far other probes moved the scores is on record"
    assert -1 <= moved["drift_rank_correlation"] <= 1

    change(workspace, "controls", {"lengths": [16, 96], "draws": 2})
    other = score(workspace, instance)
    assert sum(new_pairs(other).values()) == 0, "another control costs no candidate pass"
    assert sum(control_pairs(other).values()) > 0

    change(workspace, "controls", {"draws": 1, "kinds": ["none", "random_chars"]})
    chars = score(workspace, instance)
    assert sum(new_pairs(chars).values()) == 0
    assert control_pairs(chars)["sample_scores[renamed"] > 0, "the paper's control is computed, and nothing else"
    pairs = Store(workspace.store_dir).query(
        "SELECT count(*) AS n, count(DISTINCT (sample_id, probe_id)) AS u FROM pair_scores"
    )
    assert pairs.row(0) == (7 * 5, 7 * 5)


def test_going_back_to_earlier_settings_computes_nothing_and_doubles_no_row(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    shipped = {"max_context_tokens": 128, "max_prompt_tokens": 64, "max_response_tokens": 64}
    score(workspace, instance)
    change(workspace, "scoring", {**shipped, "separator": "\n"})
    again = score(workspace, instance)
    assert sum(new_pairs(again).values()) == 24, "another separator is another key"
    assert sum(control_pairs(again).values()) > 4
    change(workspace, "scoring", shipped)
    assert sum(new_pairs(score(workspace, instance)).values()) == 0
    store = Store(workspace.store_dir)
    assert store.query("SELECT count(*) FROM score_keys").item() == 2
    assert store.query("SELECT count(*) FROM current_scores WHERE control = 'none'").item() == 6


def test_a_deleted_file_leaves_the_views_and_stays_in_the_ledger(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    score(workspace, instance)
    (workspace.root / "pool" / "b.jsonl").unlink()
    score(workspace, instance)
    store = Store(workspace.store_dir)
    assert store.query("SELECT DISTINCT file FROM samples")["file"].to_list() == ["a.jsonl"]
    assert store.query("SELECT count(DISTINCT sample_id) FROM sample_scores").item() == 4
    assert store.query("SELECT count(*) FROM ledger WHERE asset = 'raw_pool'").item() == 2
    assert instance.get_dynamic_partitions("shard") == [store.query("SELECT shard FROM shards").item()]


def test_a_bad_shard_does_not_stop_its_neighbours(make_workspace: MakeWorkspace, instance: dg.DagsterInstance) -> None:
    workspace = make_workspace()
    (workspace.root / "pool" / "c.jsonl").write_bytes(b"\x00\xff binary \n{broken\n")
    score(workspace, instance)
    store = Store(workspace.store_dir)
    assert store.query('SELECT reason FROM quarantine ORDER BY "row"')["reason"].to_list() == [
        "not_utf8",
        "bad_json",
    ]
    assert store.query("SELECT count(DISTINCT sample_id) FROM sample_scores").item() == 6


def test_selecting_from_half_scored_shards_is_refused(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    score(workspace, instance)
    write_jsonl(workspace.root / "pool" / "new.jsonl", [alpaca("New?", "Yes.")])
    outcomes = run(workspace, instance, ("raw_pool", "selected_subset"))
    errors = [o.error for o in outcomes if o.asset == "selected_subset"]
    said = r"1 of 3 shards are not made yet, or not for .* settings \(new\.jsonl"
    assert all(error and re.search(said, error) for error in errors)


def test_a_probe_that_the_pool_or_the_evaluation_data_holds_is_left_out(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(probes={"count": 50})
    leaked = [
        alpaca(POOL_A[0]["instruction"], "Another answer.", stratum="facts"),
        alpaca("What is 2 plus 1?", "3", stratum="x"),
    ]
    write_jsonl(workspace.root / "probes" / "more.jsonl", leaked)
    score(workspace, instance)
    rows = Store(workspace.store_dir).query(
        "SELECT status, detail FROM probe_candidates WHERE file = 'more.jsonl' ORDER BY status"
    )
    assert rows["status"].to_list() == ["in_evaluation", "in_pool"]
    assert "eval/sums.jsonl:3" in rows["detail"][0]
    assert "a.jsonl:1" in rows["detail"][1]


def test_held_out_rows_have_the_strata_of_probes_and_unusable_ones_are_told(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    rows = [alpaca("Name a fish.", "Cod.", dataset="nouns"), {"instruction": "no answer"}, alpaca("Say yes.", "Yes.")]
    write_jsonl(workspace.root / "eval" / "held_out.jsonl", rows)
    assert [o.error for o in run(workspace, instance, ("base_model", "base_eval")) if o.error] == []
    tasks = Store(workspace.store_dir).query(
        "SELECT DISTINCT task FROM eval_results WHERE task LIKE 'held%' ORDER BY 1"
    )
    assert tasks["task"].to_list() == ["held_out", "held_out/all", "held_out/nouns"]
    entries = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    told = [entry.user_message for entry in entries if entry.level == logging.WARNING]
    assert [line for line in told if "held_out.jsonl:2: left out" in line]


def test_from_a_checkpoint_to_its_source_lines_and_back_without_dagsters_history(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    assert [o.error for o in run(workspace, instance, STAGES[: STAGES.index("base_eval")]) if o.error] == []
    store = Store(workspace.store_dir)
    lines = store.query('SELECT file, "row", "rank" FROM training_lineage WHERE arm = \'icon\' ORDER BY "rank", file')
    chosen = store.query("SELECT sample_id FROM selections WHERE arm = 'icon'")["sample_id"].to_list()
    source = store.query('SELECT file, "row" FROM samples WHERE sample_id IN (SELECT unnest($ids))', {"ids": chosen})
    assert sorted(lines.select("file", "row").rows()) == sorted(source.rows())
    back = store.query("SELECT arm FROM training_lineage WHERE file = 'b.jsonl' AND \"row\" = 1 AND arm = 'full'")
    assert back.height == 1

    path, checkpoint_id = store.query("SELECT path, checkpoint_id FROM checkpoints WHERE arm = 'icon'").row(0)
    manifest = pl.read_ndjson(workspace.root / path / "manifest.jsonl")
    assert manifest.select("file", "row").rows() == lines.select("file", "row").rows()
    card = json.loads((workspace.root / path / "icon_checkpoint.json").read_text())
    assert (card["checkpoint_id"], card["seed"]) == (checkpoint_id, 0)
    assert str(workspace.root) not in json.dumps(card), "a checkpoint holds no path of the machine it was made on"

    (workspace.root / "pool" / "b.jsonl").unlink()
    run(workspace, instance, ("raw_pool",))
    gone = store.query("SELECT still_in_pool FROM training_lineage WHERE file = 'b.jsonl' AND arm = 'full'")
    assert gone["still_in_pool"].to_list() == [False] * 3


def test_every_product_leaves_a_ledger_row_that_names_its_inputs(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    outcomes = run(workspace, instance, STAGES)
    ledger = Store(workspace.store_dir).query("FROM ledger")
    assert sorted(ledger.select("asset", "partition").rows()) == sorted((o.asset, o.partition) for o in outcomes)
    digests = {(row["asset"], row["partition"]): row["digest"] for row in ledger.iter_rows(named=True)}
    for row in ledger.iter_rows(named=True):
        inputs = json.loads(row["inputs"])
        assert inputs or row["asset"] == "base_model"
        for made_from in inputs:
            if (key := (made_from["asset"], made_from["partition"])) in digests:
                assert made_from["digest"] == digests[key]
        assert instance.get_run_by_id(row["run_id"]) is not None


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_checkpoint_loads_with_plain_libraries_and_answers_differently(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance, tiny_model_dir: Path, method: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = {
        "seeds": [0],
        "epochs": 8,
        "learning_rate": 0.05,
        "batch_size": 2,
        "micro_batch_size": 2,
        "max_tokens": 128,
    }
    workspace = make_workspace(training={"preset": "paper", "method": method, **recipe})
    assert [o.error for o in run(workspace, instance, STAGES[: STAGES.index("base_eval")]) if o.error] == []
    store = Store(workspace.store_dir)
    path, flops, tokens = store.query("SELECT path, flops, n_tokens FROM checkpoints WHERE arm = 'full'").row(0)
    loaded = load_model(tiny_model_dir, "float32", "cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = loaded.model(ids).logits
    folder = workspace.root / path
    tuned = (
        PeftModel.from_pretrained(loaded.model, folder)
        if method == "lora"
        else AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    )
    assert (tuned(ids).logits - before).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(folder)("a river").input_ids == loaded.tokenizer("a river").input_ids
    losses = store.query(
        "SELECT loss FROM loss_curves JOIN checkpoints USING (checkpoint_id) WHERE arm = 'full' ORDER BY step"
    )
    assert losses["loss"][-1] < losses["loss"][0]
    assert flops > tokens * 4 * sum(p.numel() for p in loaded.model.model.layers.parameters() if p.dim() > 1) / 2
    settings = json.loads((folder / "icon_checkpoint.json").read_text())["settings"]
    assert (settings["method"], settings["warmup_fraction"], settings["batch_size"]) == (method, 0.03, 2)


def test_an_unknown_asset_is_refused_and_the_order_is_the_graphs(make_workspace: MakeWorkspace) -> None:
    judge = {
        "prompts": [{"name": "talk", "path": "eval/talk.jsonl"}],
        "judge": {"url": "http://127.0.0.1:9", "model": "m"},
    }
    assets = build_assets(make_workspace(evaluation={"pairwise": judge}))
    assert stages_of(assets, ["sample_scores", "raw_pool"]) == ("raw_pool", "sample_scores")
    assert stages_of(assets) == STAGES
    assert scoring_stages(assets) == SCORING_STAGES
    assert stages_before_training(assets) == STAGES[: STAGES.index("checkpoint")]
    for place, asset in enumerate(assets):
        inputs = {key.to_user_string() for key in asset.dependency_keys} - {"pool_files", "probe_files"}
        assert inputs <= {*STAGES[:place]}, "an asset comes after what it is made from"
    with pytest.raises(IconError, match="nonsense: no such asset"):
        stages_of(assets, ["nonsense"])


def test_a_recipe_takes_what_the_partitions_of_its_asset_are_of(make_workspace: MakeWorkspace) -> None:
    judge = {
        "prompts": [{"name": "talk", "path": "eval/talk.jsonl"}],
        "judge": {"url": "http://127.0.0.1:9", "model": "m"},
    }
    for asset in build_assets(make_workspace(evaluation={"pairwise": judge})):
        of: Any = asset.partitions_def
        if isinstance(of, dg.MultiPartitionsDefinition):
            parts = tuple(of.partition_dimension_names)
        else:
            parts = {SHARDS: ("shard",), None: ()}.get(of, ("arm",))
        assert made_by(asset.key.to_user_string()) == parts, asset.key


def test_the_scoring_job_discovers_shards_and_scores_them(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    job = build_defs(workspace).resolve_job_def("score_pool")
    assert job.execute_in_process(instance=instance).success
    assert Store(workspace.store_dir).query("SELECT count(DISTINCT sample_id) FROM sample_scores").item() == 6
    assert len(instance.get_dynamic_partitions("shard")) == 2
