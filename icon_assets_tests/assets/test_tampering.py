"""What is changed behind the store's back is found, named and made again; what can't be read stops only who reads
it."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from icon_assets import cli
from icon_assets.core.errors import IconError, StoreDamaged
from icon_assets.core.inputs.source_files import shard_key
from icon_assets.core.quality import refuse
from icon_assets.core.quality.training import checkpoint_loads
from icon_assets.core.quality.verification import verify
from icon_assets.core.store import inventory, ledger
from icon_assets.core.store.delta import LIVE
from icon_assets.core.store.restoration import repair, repairs
from icon_assets.core.store.schema import schemas
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import SCORING_STAGES
from icon_assets_tests.tampering import change_rows, cut, empty, files_of, flip, log_of, remove_table

A = shard_key("a.jsonl")
B = shard_key("b.jsonl")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


@pytest.fixture
def store(finished: Workspace) -> Store:
    return Store(finished.store_dir)


def run(workspace: Workspace, instance: dg.DagsterInstance, *stages: str) -> dict[str, Outcome]:
    workspace = Workspace.load(workspace.root)
    return {o.name: o for o in run_stages(build_assets(workspace), workspace, instance, stages, asked=stages)}


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
    "a response": (
        lambda s: change_rows(s, "samples", "response = 'Blue.'", response="Red."),
        f"samples shard={A}: 4 rows, whose values",
    ),
    "an instruction of the same length": (
        lambda s: change_rows(s, "samples", "response = 'Fast'", response="Slow"),
        f"samples shard={B}",
    ),
    "a contribution": (
        lambda s: change_rows(s, "sample_scores", contribution=9.5),
        f"sample_scores shard={A} score_key=",
    ),
    "an NLL in its last digit": (
        lambda s: change_rows(s, "pair_scores", nll_sum=_next(s)),
        f"pair_scores score_key=\\w+ origin={A}: 16 rows, whose",
    ),
    "a control": (lambda s: change_rows(s, "control_scores", nll_sum=0.5), "control_scores score_key="),
    "a context length": (lambda s: change_rows(s, "contexts", n_context_tokens=1), "contexts score_key="),
    "a probe": (
        lambda s: change_rows(s, "probe_candidates", "status = 'selected'", response="x"),
        "probe_candidates: 5 rows",
    ),
    "an embedding": (lambda s: change_rows(s, "sample_features", embedding=[0.5] * 32), "sample_features score_key="),
    "a prediction": (lambda s: change_rows(s, "predicted_scores", score=9.0), f"predicted_scores shard={A}"),
    "a choice": (lambda s: change_rows(s, "selections", rank=7), "selections arm=icon"),
    "a metric": (lambda s: change_rows(s, "eval_results", value=0.99), "eval_results checkpoint_id="),
    "an item": (lambda s: change_rows(s, "eval_items", value=1.5), "eval_items checkpoint_id="),
    "a loss": (lambda s: change_rows(s, "loss_curves", loss=0.1), "loss_curves checkpoint_id="),
    "a manifest": (lambda s: change_rows(s, "checkpoint_samples", row=99), "checkpoint_samples checkpoint_id="),
    "a difference": (lambda s: change_rows(s, "leaderboard_differences", difference=1.0), "leaderboard_differences: "),
    "an entry of the ledger": (lambda s: change_rows(s, "ledger", "asset = 'report'", digest="0" * 32), "ledger: "),
}
SHAPES = {
    "a file in the place of another": (_swap_file, f"samples shard={A}: 3 rows, 4 recorded"),
    "rows that a foreign program added": (_foreign_commit, "eval_results checkpoint_id="),
    "rows that a foreign program deleted": (
        _foreign_delete,
        f"sample_features score_key=\\w+ origin={B}: 0 rows, 2 recorded",
    ),
    "a row under a shard that never was": (_foreign_shard, "quarantine shard=x: 1 rows, 0 recorded"),
    "no pairs at all": (
        lambda s: remove_table(s, "pair_scores"),
        f"pair_scores score_key=\\w+ origin={A}: 0 rows, 16 recorded",
    ),
    "the newest entry of a log gone": (lambda s: log_of(s, "sample_scores")[-1].unlink(), f"sample_scores shard={B}"),
    "the newest entry of a log emptied": (
        lambda s: empty(log_of(s, "predicted_scores")[-1]),
        f"predicted_scores shard={B}",
    ),
}


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
}


def test_every_damage_is_one_line_and_repair_takes_back_what_is_still_there(store: Store) -> None:
    rows = {table: store.query(f"FROM delta.{table} ORDER BY ALL") for table, _ in DAMAGE.values()}
    for _, spoil in DAMAGE.values():
        spoil(store)
    LIVE.clear()  # as a process that has not read the logs before
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


def _forget_contents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the workspace one that an earlier version wrote: without contents in commits and ledger, and ids without a
    counter."""
    rows = store.query("FROM delta.ledger").with_columns(
        event_id=pl.col("event_id").map_elements(lambda each: each.replace("-", "")[::-1], pl.String),
    )
    plain = [json.dumps(ledger.recorded_summary(each)) for each in rows["summary"]]
    remove_table(store, "ledger")
    store.replace("ledger", rows.with_columns(summary=pl.Series(plain)))
    for table in schemas():
        for entry in log_of(store, table):
            lines = [json.loads(line) for line in entry.read_text().splitlines()]
            for line in lines:
                line.get("commitInfo", {}).pop("icon_contents", None)
            entry.write_text("".join(json.dumps(line) + "\n" for line in lines))
    LIVE.clear()
    monkeypatch.setattr("icon_assets.core.store.inventory._read", {})


def test_a_workspace_of_an_earlier_version_is_taken_as_it_is_and_known_from_there_on(
    finished: Workspace, store: Store, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forget_contents(store, monkeypatch)
    assert inventory.unrecorded(store), "nobody has recorded it"
    outcomes = run(finished, instance, *SCORING_STAGES, "selected_subset", "eval_results")
    assert [o.error for o in outcomes.values() if o.error] == []
    assert [o.name for o in outcomes.values() if o.metadata["changed"]] == [], "nothing is stale, nothing is computed"
    assert inventory.unrecorded(store) == []
    assert "known_from_here" in ledger.latest(store, "store")[""].summary
    change_rows(store, "pair_scores", nll_sum=0.5)
    assert [line.split()[0] for line in verify(finished).mismatches] == ["pair_scores"]


def test_a_process_that_is_killed_between_rows_and_ledger_has_tampered_with_nothing(
    finished: Workspace, store: Store
) -> None:
    shards = store.query("FROM delta.shards")
    pairs = store.query("FROM delta.pair_scores")
    store.replace("shards", shards.head(1), shard=shards["shard"][0])  # the ledger's row would come now
    store.append("pair_scores", pairs.head(3).with_columns(probe_id=pl.lit("new")))
    store.replace(
        "selections",
        store.query("FROM delta.selections").head(1).with_columns(subset_id=pl.lit("new")),
        subset_id="new",
    )
    assert verify(finished).mismatches == []
    store._compact("pair_scores")
    assert verify(finished).mismatches == []
    ledger.record(store, ledger.Recipe("later"), "digest", "run", {})
    assert verify(finished).mismatches == []
    change_rows(store, "pair_scores", "probe_id = 'new'", nll_sum=7.0)
    assert [line.split()[0] for line in verify(finished).mismatches] == ["pair_scores"], (
        "what was added since is tied, too"
    )


def test_a_clock_that_jumps_back_makes_no_old_entry_the_newest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=UTC)

    before = ledger.newest(store, "probe_set")
    monkeypatch.setattr("icon_assets.core.store.ledger.datetime", Past)
    monkeypatch.setattr("icon_assets.core.store.tables.datetime", Past)
    assert before
    ledger.record(store, ledger.Recipe("probe_set"), "later", "run", {})
    newest = ledger.newest(store, "probe_set")
    assert newest
    assert newest.digest == "later"
    assert store.query("SELECT max_by(digest, seq) FROM ledger WHERE asset = 'probe_set'").item() == "later"
    assert store.query("SELECT count(DISTINCT seq) = count(*) FROM ledger").item()
    newest_model = store.query("SELECT max(prepared_at) FROM delta.models").item()
    assert store.now_after("models", "prepared_at") > newest_model, "a row that is written now is the newest"


def test_a_lost_row_of_a_checkpoint_is_not_called_a_missing_base_model(finished: Workspace, store: Store) -> None:
    rows = store.query("FROM delta.checkpoints")
    store.replace("checkpoints", rows.with_columns(checkpoint_id=pl.lit("twin")), checkpoint_id="twin")
    store.replace("checkpoints", rows.head(0), checkpoint_id=rows["checkpoint_id"][0])
    with pytest.raises(IconError, match=r"checkpoints has no row of .* an entry of its log was lost"):
        refuse(finished, "checkpoint", "icon|0", checkpoint_loads)


def test_the_commands_say_what_is_wrong_and_what_to_do(
    finished: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ICON_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    at = ["-w", str(finished.root)]
    assert cli.main([*at, "verify"]) == 0
    assert "all as recorded" in capsys.readouterr().out
    change_rows(store, "sample_scores", contribution=9.5)
    cut(files_of(store, "selections")[0])
    assert cli.main([*at, "verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["mismatches"]
    assert [line.split()[0].strip(":") for line in found] == ["selections", "sample_scores"]
    assert cli.main([*at, "status"]) == 1
    assert capsys.readouterr().err.startswith("icon-assets: store table selections: ")
    assert cli.main([*at, "repair"]) == 0
    assert "Nothing was changed" in capsys.readouterr().out
    assert cli.main([*at, "repair", "--yes"]) == 0
    assert "set aside in store/set_aside/" in capsys.readouterr().out
    store.path.chmod(0o644)
    empty(store.path)
    store.path.write_bytes(b"garbage" * 1000)
    assert cli.main([*at, "sql", "FROM shards"]) == 0, "a damaged published file is published again"
