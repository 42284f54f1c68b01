"""What is changed behind the store's back is found, named and made again; what can't be read stops only who reads it."""

import math
import re
import shutil
from collections.abc import Callable, Iterator

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from icon_assets.core.errors import StoreDamaged
from icon_assets.core.restoration import repair, repairs
from icon_assets.core.store import Store, schemas
from icon_assets.core.verification import verify
from icon_assets.definitions import build_assets
from icon_assets.runner import SCORING_STAGES, Outcome, run_stages
from icon_assets.settings import Workspace
from icon_assets_tests.tampering import change_rows, cut, empty, files_of, flip, log_of, remove_table

A, B = "a.jsonl-27a16a60", "b.jsonl-3dc314eb"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


@pytest.fixture
def store(finished: Workspace) -> Store:
    return Store(finished.store_dir)


def run(workspace: Workspace, instance: dg.DagsterInstance, *stages: str) -> dict[str, Outcome]:
    workspace = Workspace.load(workspace.root)
    return {o.name: o for o in run_stages(build_assets(workspace), workspace, instance, stages)}


def _foreign_delete(store: Store) -> None:
    DeltaTable(str(store.root / "tables" / "sample_features")).delete(f"origin = '{B}'")


def _swap_file(store: Store) -> None:
    one, other = files_of(store, "samples")
    shutil.copy(other, one)


def _foreign_commit(store: Store) -> None:
    place = str(store.root / "tables" / "eval_results")
    write_deltalake(place, DeltaTable(place).to_pyarrow_table().slice(0, 1), mode="append")


def _next(store: Store) -> float:
    value = store.query(f"SELECT nll_sum FROM delta.pair_scores WHERE origin = '{A}' LIMIT 1").item()
    return math.nextafter(value, 1e9)


def _foreign_shard(store: Store) -> None:
    frame = pl.DataFrame({name: ["x"] for name in schemas()["quarantine"].names}).with_columns(row=pl.lit(1, pl.Int64))
    write_deltalake(str(store.root / "tables" / "quarantine"), frame.to_arrow(), mode="append", partition_by=["shard"])


# Faults that are put into one workspace together, and what must be named of each.
VALUES = {
    "a response": (lambda s: change_rows(s, "samples", "response = 'Blue.'", response="Red."), f"samples shard={A}: 4 rows, whose values"),
    "an instruction of the same length": (lambda s: change_rows(s, "samples", "response = 'Fast'", response="Slow"), f"samples shard={B}"),
    "a contribution": (lambda s: change_rows(s, "sample_scores", contribution=9.5), f"sample_scores shard={A} score_key="),
    "an NLL in its last digit": (lambda s: change_rows(s, "pair_scores", nll_sum=_next(s)), f"pair_scores score_key=\\w+ origin={A}: 16 rows, whose"),
    "a control": (lambda s: change_rows(s, "control_scores", nll_sum=0.5), "control_scores score_key="),
    "a context length": (lambda s: change_rows(s, "contexts", n_context_tokens=1), "contexts score_key="),
    "a probe": (lambda s: change_rows(s, "probe_candidates", "status = 'selected'", response="x"), "probe_candidates: 5 rows"),
    "an embedding": (lambda s: change_rows(s, "sample_features", embedding=[0.5] * 32), "sample_features score_key="),
    "a prediction": (lambda s: change_rows(s, "predicted_scores", score=9.0), f"predicted_scores shard={A}"),
    "a choice": (lambda s: change_rows(s, "selections", rank=7), "selections arm=icon"),
    "a metric": (lambda s: change_rows(s, "eval_results", value=0.99), "eval_results checkpoint_id="),
    "an item": (lambda s: change_rows(s, "eval_items", value=1.5), "eval_items checkpoint_id="),
    "a loss": (lambda s: change_rows(s, "loss_curves", loss=0.1), "loss_curves checkpoint_id="),
    "a manifest": (lambda s: change_rows(s, "checkpoint_samples", row=99), "checkpoint_samples checkpoint_id="),
    "a difference": (lambda s: change_rows(s, "leaderboard_differences", difference=1.0), "leaderboard_differences: "),
    "an entry of the ledger": (lambda s: change_rows(s, "ledger", "asset = 'report'", digest="0" * 32), "ledger: "),
}  # fmt: skip
SHAPES = {
    "a file in the place of another": (_swap_file, f"samples shard={A}: 3 rows, 4 recorded"),
    "rows that a foreign program added": (_foreign_commit, "eval_results checkpoint_id="),
    "rows that a foreign program deleted": (_foreign_delete, f"sample_features score_key=\\w+ origin={B}: 0 rows, 2 recorded"),
    "a row under a shard that never was": (_foreign_shard, "quarantine shard=x: 1 rows, 0 recorded"),
    "no pairs at all": (lambda s: remove_table(s, "pair_scores"), f"pair_scores score_key=\\w+ origin={A}: 0 rows, 16 recorded"),
    "the newest entry of a log gone": (lambda s: log_of(s, "sample_scores")[-1].unlink(), f"sample_scores shard={B}"),
    "the newest entry of a log emptied": (lambda s: empty(log_of(s, "predicted_scores")[-1]), f"predicted_scores shard={B}"),
}  # fmt: skip


@pytest.mark.parametrize("faults", [VALUES, SHAPES], ids=["values", "shapes"])
def test_what_was_changed_is_found_and_named(
    finished: Workspace, store: Store, faults: dict[str, tuple[Callable[[Store], None], str]]
) -> None:
    assert verify(finished).mismatches == []
    for spoil, _ in faults.values():
        spoil(store)
    found = verify(finished).mismatches
    assert {fault for fault, (_, named) in faults.items() if not any(re.match(named, line) for line in found)} == set()
    assert not any("\n" in line for line in found)
    spoiled = {named.split()[0].strip(":") for _, named in faults.values()}
    assert {line.split()[0].strip(":") for line in found if "=" in line.split(":")[0]} <= spoiled, "and nothing else"


def _products(store: Store) -> dict[str, pl.DataFrame]:
    tables = ("samples", "probe_candidates", "pair_scores", "contexts", "control_scores", "sample_scores", "selections")
    return {table: store.query(f"FROM delta.{table} ORDER BY ALL") for table in tables}


def test_the_next_run_makes_again_what_was_changed_and_computes_no_other_pair(
    finished: Workspace, store: Store, instance: dg.DagsterInstance
) -> None:
    before = _products(store)
    for fault in (
        "a response",
        "a contribution",
        "an NLL in its last digit",
        "a control",
        "a context length",
        "a probe",
        "a choice",
    ):
        VALUES[fault][0](store)
    refused = run(finished, instance, "sample_scores")
    assert {o.error.split(":")[0] for o in refused.values() if o.error} == {f"raw_pool [{A}]", "probe_set"}, (
        "nothing is spent on it"
    )

    outcomes = run(finished, instance, *SCORING_STAGES, "selected_subset")
    assert [o.error for o in outcomes.values() if o.error] == []
    assert outcomes[f"sample_scores[{A}]"].metadata["new_pairs"] == 16
    assert outcomes[f"raw_pool[{B}]"].metadata["changed"] is False
    assert sum(o.metadata.get("new_pairs", 0) for o in outcomes.values()) == 16
    after = _products(store)
    unlike = {table for table in before if not before[table].equals(after[table])}
    assert unlike <= {"control_scores"}, "whose forwards hold other controls at once than the first time"
    controls = [each["control_scores"].sort("probe_id", "control", "seed", "length") for each in (before, after)]
    assert controls[0].drop("nll_sum").equals(controls[1].drop("nll_sum"))
    assert controls[0]["nll_sum"].to_list() == pytest.approx(controls[1]["nll_sum"].to_list(), rel=1e-5)
    assert [line for line in verify(finished).mismatches if not line.startswith("ledger")] == []


def test_pairs_whose_folder_was_deleted_are_computed_again_and_no_others(
    finished: Workspace, store: Store, instance: dg.DagsterInstance
) -> None:
    before = _products(store)
    (folder,) = {path.parent for path in files_of(store, "pair_scores") if f"origin={B}" in str(path)}
    shutil.rmtree(folder)
    assert [line for line in verify(finished).mismatches if "is gone" in line]
    outcomes = run(finished, instance, *SCORING_STAGES)
    assert [o.error for o in outcomes.values() if o.error] == []
    assert sum(o.metadata.get("new_pairs", 0) for o in outcomes.values()) == 8
    after = _products(store)
    assert {table for table in before if not before[table].equals(after[table])} == set()
    assert verify(finished).mismatches == []


def test_a_damaged_table_stops_only_who_reads_it_and_is_repaired(
    finished: Workspace, store: Store, instance: dg.DagsterInstance
) -> None:
    before = _products(store)
    spoiled = next(path for path in files_of(store, "pair_scores") if f"origin={B}" in str(path))
    cut(spoiled)
    empty(files_of(store, "sample_features")[0])
    outcomes = run(finished, instance, *SCORING_STAGES, "sample_features", "selected_subset")
    errors = {o.name: o.error for o in outcomes.values() if o.error}
    assert errors.keys() >= {f"sample_scores[{B}]", f"sample_features[{A}]"}, errors
    assert f"raw_pool[{B}]" not in errors
    assert "selected_subset[icon]" not in errors, "it has all it needs"
    for line in errors.values():
        assert re.search(
            r"store table (pair_scores|sample_features): \S+\.parquet can't be read .*`icon-assets repair`", line
        ), line
        assert "\n" not in line
    assert [each.table for each in repairs(store)] == ["pair_scores", "sample_features"]
    assert spoiled.exists(), "so far it was only said"
    assert len(list(repair(store))) == 2
    assert len(list((store.root / "set_aside").rglob("*.parquet"))) == 2, "nothing is deleted"
    outcomes = run(finished, instance, *SCORING_STAGES, "sample_features")
    assert [o.error for o in outcomes.values() if o.error] == []
    assert sum(o.metadata.get("new_pairs", 0) for o in outcomes.values()) == 8
    assert {table for table, rows in _products(store).items() if not rows.equals(before[table])} == set()
    assert verify(finished).mismatches == []


def _garbage_checkpoint(store: Store, table: str) -> None:
    DeltaTable(str(store.root / "tables" / table)).create_checkpoint()
    (checkpoint,) = (store.root / "tables" / table / "_delta_log").glob("*.checkpoint.parquet")
    empty(checkpoint)


DAMAGE = {
    "a flipped byte": ("sample_scores", lambda s: flip(files_of(s, "sample_scores")[0])),
    "a flipped byte in the footer": ("samples", lambda s: flip(files_of(s, "samples")[0], 0.98)),
    "a truncated file": ("selections", lambda s: cut(files_of(s, "selections")[0])),
    "an empty file": ("eval_results", lambda s: empty(files_of(s, "eval_results")[0])),
    "a deleted file": ("loss_curves", lambda s: files_of(s, "loss_curves")[0].unlink()),
    "the first entry of a log gone": ("control_scores", lambda s: log_of(s, "control_scores")[0].unlink()),
    "the last entry of a log gone": ("predicted_scores", lambda s: log_of(s, "predicted_scores")[-1].unlink()),
    "garbage in a log": ("shards", lambda s: log_of(s, "shards")[-1].write_text("garbage")),
    "a whole log gone": ("contexts", lambda s: shutil.rmtree(log_of(s, "contexts")[0].parent)),
    "a damaged checkpoint of a log": ("quarantine", lambda s: _garbage_checkpoint(s, "quarantine")),
    "a damaged checkpoint of the ledger's log": ("ledger", lambda s: _garbage_checkpoint(s, "ledger")),
}  # fmt: skip


def test_every_damage_is_one_line_and_repair_takes_back_what_is_still_there(finished: Workspace, store: Store) -> None:
    rows = {table: store.query(f"FROM delta.{table} ORDER BY ALL") for table, _ in DAMAGE.values()}
    for _, spoil in DAMAGE.values():
        spoil(store)
    store.publish()
    for table in rows:
        if table != "predicted_scores":
            with pytest.raises(StoreDamaged, match=r"^store table \w+: [^\n]*`icon-assets repair`[^\n]*$"):
                store.query(f"FROM delta.{table}")
            assert {damage.table for damage in store.damages(table)} == {table}
    assert store.query("SELECT count(*) FROM delta.models").item() == 1, "what is sound goes on"
    assert {each.table for each in repairs(store)} >= rows.keys() - {"predicted_scores"}
    done = list(repair(store))
    assert not any("\n" in line for line in done)
    after = {table: store.query(f"FROM delta.{table} ORDER BY ALL") for table in rows if table != "ledger"}
    put_back = {table for table, frame in after.items() if frame.equals(rows[table])}
    assert put_back == {"control_scores", "predicted_scores", "shards", "contexts", "quarantine"}, done
    ids = store.query("FROM delta.ledger")["event_id"]
    assert set(rows["ledger"]["event_id"]) <= set(ids), "no entry was lost"
