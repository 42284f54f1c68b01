"""The store: whole partitions or none, no lost and no doubled rows, readers that never fail."""

import multiprocessing
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.scoring.scorer import PAIR_KEY
from icon_assets.core.store.schema import PARTITIONED_BY, schemas
from icon_assets.core.store.tables import Store
from icon_assets_tests.conftest import put_shards

SPAWN = multiprocessing.get_context("spawn")
CONTRACT = {
    "samples",
    "quarantine",
    "probes",
    "pair_scores",
    "control_scores",
    "sample_scores",
    "predicted_scores",
    "selections",
    "checkpoints",
    "eval_results",
    "leaderboard",
    "ledger",
}


def shard_rows(shard: str, n: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "shard": [shard] * n,
            "file": [f"{shard}.jsonl"] * n,
            "row": list(range(1, n + 1)),
            "reason": ["bad_json"] * n,
            "detail": ["x"] * n,
            "excerpt": ["y"] * n,
        }
    )


def pairs(names: list[str], key: str = "k") -> pl.DataFrame:
    n = len(names)
    return pl.DataFrame(
        {
            "score_key": [key] * n,
            "origin": ["a"] * n,
            "sample_id": names,
            "probe_id": ["p"] * n,
            "nll_sum": [1.5] * n,
            "n_tokens": [3] * n,
        }
    )


def test_every_view_of_the_contract_exists_empty_and_described(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish()
    with duckdb.connect(str(store.path), read_only=True) as con:
        views = dict(
            con.execute(
                "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'"
            ).fetchall()
        )
        assert set(views) >= CONTRACT
        assert all(views.values()), "every view has a description"
        for view in views:
            assert con.sql(f'SELECT count(*) FROM "{view}"').fetchall() == [(0,)]


def test_the_published_file_cannot_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o444
    with pytest.raises(IconError, match="sql:"):
        store.query_published("CREATE TABLE x (a INT)")


def test_queries_of_users_are_confined_to_the_store(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    store = Store(tmp_path / "store")
    put_shards(store, "a")
    store.replace("quarantine", shard_rows("a", 2), shard="a")
    store.publish()
    assert store.query_published("SELECT count(*) AS n FROM quarantine").item() == 2
    for query in (
        f"FROM '{tmp_path}/secret.csv'",
        "SET enable_external_access = true",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
    ):
        with pytest.raises(IconError, match="sql:"):
            store.query_published(query)


def test_threads_that_query_at_once_are_not_in_each_others_way(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(store.query_published, ["SELECT count(*) AS n FROM samples"] * 40))
    assert {answer["n"].item() for answer in answers} == {0}


def test_replacing_a_partition_leaves_its_neighbours(tmp_path: Path) -> None:
    store = Store(tmp_path / "with space's")
    put_shards(store, "001", "002")
    for shard, n in (("001", 3), ("002", 2), ("001", 1), ("002", 0)):
        store.replace("quarantine", shard_rows(shard, n), shard=shard)
    assert store.query('SELECT shard, "row" FROM quarantine').rows() == [("001", 1)]


def test_rows_of_a_shard_that_is_not_on_record_are_in_no_view(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.replace("quarantine", shard_rows("killed", 2), shard="killed")
    assert store.query("FROM quarantine").is_empty(), "a writer that was killed before it put the shard on record"


def test_values_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = Store(tmp_path)
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    row = {
        "shard": "007",
        "file": "a'b ü.jsonl",
        "digest": "00",
        "n_bytes": 2**40,
        "mtime_ns": 2**60 + 1,
        "n_samples": 1,
        "n_quarantined": 0,
        "ingested_at": moment,
        "removed_at": moment,
    }
    store.replace("shards", pl.DataFrame([row]), shard="007")
    assert store.query("FROM removed_shards").to_dicts() == [row]
    assert store.query("FROM shards").is_empty()


def test_rows_that_are_stored_are_not_added_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.append_new("pair_scores", pairs(["a", "b", "b"]), PAIR_KEY) == 2
    assert store.append_new("pair_scores", pairs(["b", "c"]), PAIR_KEY) == 1
    assert store.append_new("pair_scores", pairs(["a"], key="other"), PAIR_KEY) == 1
    assert store.query("SELECT count(*) FROM pair_scores").item() == 4


def test_a_table_that_was_deleted_and_made_anew_is_read_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in "ab":
        store.append_new("pair_scores", pairs([name]), PAIR_KEY)
        assert store.query("SELECT sample_id FROM pair_scores")["sample_id"].to_list() == [name]
        shutil.rmtree(tmp_path / "tables")


def test_many_small_appends_are_merged_without_losing_a_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(70):
        store.append_new("pair_scores", pairs([f"s{n}"]), PAIR_KEY)
    assert store.query("SELECT count(DISTINCT sample_id) FROM pair_scores").item() == 70
    assert len(store.files("pair_scores")) < 10


def test_an_old_reader_finishes_undisturbed_while_the_store_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_shards(store, "a")
    store.replace("quarantine", shard_rows("a", 5), shard="a")
    store.publish()
    with duckdb.connect(str(store.path), read_only=True) as reader:
        store.replace("quarantine", shard_rows("a", 9), shard="a")
        store.publish()
        assert reader.sql("SELECT count(*) FROM quarantine").fetchall() == [(5,)]
    assert store.query_published("SELECT count(*) AS n FROM quarantine").item() == 9


def test_partition_columns_are_text() -> None:
    for table, columns in PARTITIONED_BY.items():
        assert all(str(schemas()[table].field(column).type) == "string" for column in columns)


def test_a_store_that_cannot_be_written_gives_one_line_that_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "store"
    (blocked / "tables").mkdir(parents=True)
    (blocked / "tables" / "quarantine").write_text("a file where a folder must be")
    with pytest.raises(IconError, match="store table quarantine: could not be written") as caught:
        Store(blocked).replace("quarantine", shard_rows("a", 1), shard="a")
    assert "\n" not in str(caught.value)


def _add_pairs(root: Path, start: int, rounds: int) -> None:
    for n in range(rounds):
        Store(root).append_new("pair_scores", pairs([f"s{i}" for i in range(start + n, start + n + 4)]), PAIR_KEY)


def test_two_writers_of_overlapping_pairs_store_each_once(tmp_path: Path) -> None:
    writers = [SPAWN.Process(target=_add_pairs, args=(tmp_path, start, 8)) for start in (0, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    rows = Store(tmp_path).query("SELECT sample_id, count(*) AS n FROM pair_scores GROUP BY ALL")
    assert (rows.height, rows["n"].max()) == (15, 1)


def _replace_for_ever(root: Path, shard: str) -> None:
    store = Store(root)
    n = 0
    while True:
        n = n % 50 + 1
        store.replace("quarantine", shard_rows(shard, n).with_columns(detail=pl.lit(str(n))), shard=shard)
        store.publish()


def test_killed_writers_leave_whole_partitions_and_readers_see_no_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_shards(store, "a", "b")
    for shard in "ab":
        store.replace("quarantine", shard_rows(shard, 1).with_columns(detail=pl.lit("1")), shard=shard)
    store.publish()
    for _ in range(4):
        writers = [SPAWN.Process(target=_replace_for_ever, args=(tmp_path, shard), daemon=True) for shard in "ab"]
        for writer in writers:
            writer.start()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert_whole(store.query_published("SELECT shard, detail, count(*) AS n FROM quarantine GROUP BY ALL"))
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        assert_whole(store.query("SELECT shard, detail, count(*) AS n FROM quarantine GROUP BY ALL"))


def assert_whole(rows: pl.DataFrame) -> None:
    assert rows["shard"].sort().to_list() == ["a", "b"]
    assert all(int(detail) == n for detail, n in rows.select("detail", "n").iter_rows())
