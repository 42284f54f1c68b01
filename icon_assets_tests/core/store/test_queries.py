"""SQL of users: it reads this store's files and nothing else, changes nothing, ends when told to, and prints whatever
comes back."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import duckdb
import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.store import queries
from icon_assets.core.store.landlock import write_only_below
from icon_assets.core.store.queries import Bounds, spill_directory
from icon_assets.core.store.statements import MAX_CHARS, reading
from icon_assets.core.store.tables import Store
from icon_assets.core.strict_json import strict_json
from icon_assets.settings import SqlSettings
from icon_assets_tests.conftest import put_shards
from icon_assets_tests.core.store.test_tables import shard_rows

FOUR = pl.DataFrame(
    {
        "shard": ["a"] * 4,
        "file": ["a.jsonl"] * 4,
        "row": [1, 2, 3, 4],
        "reason": ["bad_json"] * 3 + ["missing"],
        "detail": ["x"] * 4,
        "excerpt": ["y"] * 4,
    }
)


def lay_out(root: Path) -> Store:
    """A small published store."""
    store = Store(root / "store")
    put_shards(store, "a")
    store.replace("quarantine", FOUR, shard="a")
    store.publish()
    return store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that no test may change, with a secret beside it and a link to that inside."""
    root = tmp_path_factory.mktemp("queries") / "workspace"
    store = lay_out(root)
    (root / "secret.csv").write_text("a\n1\n")
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT 'secret' AS a) TO '{root}/secret.parquet'")
    (store.root / "link.csv").symlink_to(root / "secret.csv")
    (store.root / "tables" / "quarantine" / "link.parquet").symlink_to(root / "secret.parquet")
    return store


@pytest.fixture
def untouched(shared: Store) -> Iterator[Store]:
    """The shared store; afterwards every file in its workspace must be what it was."""
    before = contents(shared.root.parent)
    yield shared
    assert contents(shared.root.parent) == before


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts
    }


# What writes, in any disguise. {live}: a Parquet file of the store, {root}: the store's folder.
WRITES = [
    "COPY quarantine TO '{root}/new.csv'",
    "COPY (SELECT 1) TO '{live}' (FORMAT parquet)",
    "COPY (SELECT 1 AS a) TO '{live}' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPORT DATABASE '{root}/exported'",
    "IMPORT DATABASE '{root}'",
    "COPY FROM DATABASE scores TO memory",
    "EXPLAIN ANALYZE COPY quarantine TO '{root}/new.csv'",
    "EXPLAIN (ANALYZE, FORMAT json) COPY quarantine TO '{root}/new.csv'",
    "/* a */ EXPLAIN /* b */ ANALYZE -- c\n COPY quarantine TO '{root}/new.csv'",
    "EXPLAIN ANALYZE WITH x AS (COPY quarantine TO '{root}/new.csv') FROM x",
    "WITH x AS (COPY quarantine TO '{root}/new.csv') FROM x",
    "WITH x AS (COPY (SELECT 1 AS a) TO '{live}' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1",
    "SELECT (WITH x AS (COPY quarantine TO '{root}/new.csv') SELECT count(*) FROM x)",
    "WITH x AS (COPY quarantine TO '{root}/new.csv') PIVOT x ON count",
    "WITH y AS (SELECT 'üüü' AS z), x AS (COPY quarantine TO '{root}/new.csv') PIVOT x ON count",
    "FROM (WITH x AS (COPY quarantine TO '{root}/new.csv'), y AS (FROM quarantine) PIVOT y ON reason)",
    "WITH x AS (INSERT INTO quarantine VALUES (1) RETURNING *) FROM x",
    "PREPARE p AS COPY quarantine TO '{root}/new.csv'",
    "PREPARE p AS COPY quarantine TO '{root}/new.csv'; EXECUTE p",
    "EXECUTE p",
    "EXPLAIN ANALYZE EXECUTE p",
    "SELECT 1; COPY quarantine TO '{root}/new.csv'",
    "COPY quarantine TO '{root}/new.csv'; SELECT 1",
    "SELECT 1\0; COPY quarantine TO '{root}/new.csv'",
    "SELECT 1) x; COPY quarantine TO '{root}/new.csv'; FROM (SELECT 1",
    "CREATE TABLE x (a INT)",
    "CREATE TEMP TABLE x AS FROM quarantine",
    "CREATE VIEW x AS SELECT 1",
    "CREATE MACRO m(a) AS a",
    "CREATE OR REPLACE VIEW quarantine AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO quarantine VALUES (1)",
    "UPDATE quarantine SET reason = 'x'",
    "DELETE FROM quarantine",
    "TRUNCATE quarantine",
    "MERGE INTO quarantine USING quarantine x ON true WHEN MATCHED THEN DELETE",
    "DROP VIEW quarantine",
    "ALTER VIEW quarantine RENAME TO q",
    "COMMENT ON VIEW quarantine IS 'x'",
    "ATTACH '{root}/new.duckdb' AS n",
    "ATTACH ':memory:' AS n",
    "DETACH scores",
    "USE memory",
    "SET enable_external_access = true",
    "SET threads = 1",
    "RESET lock_configuration",
    "SET VARIABLE x = 1",
    "PRAGMA threads = 1",
    "PRAGMA database_list",
    "CALL checkpoint()",
    "CHECKPOINT",
    "FORCE CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "LOAD json",
    "INSTALL httpfs",
    "UPDATE EXTENSIONS",
    "BEGIN; DELETE FROM quarantine; COMMIT",
]
# What reads other things than the store. {root} is in the workspace, beside its secret.
READS = [
    "FROM '{root}/../secret.csv'",
    "FROM read_csv('{root}/../secret.csv')",
    "FROM read_csv('{root}/link.csv')",
    "FROM read_text('{root}/../secret.csv')",
    "FROM read_blob('/etc/passwd')",
    "FROM read_json('{root}/../settings.yaml')",
    "FROM read_parquet('{root}/../secret.parquet')",
    "FROM read_parquet('{root}/tables/quarantine/link.parquet')",
    "FROM read_parquet('{root}/tables/quarantine/../../../secret.parquet')",
    "FROM read_parquet('{root}/tables/*/*/*.parquet')",
    "FROM parquet_schema('{root}/../secret.parquet')",
    "FROM glob('/etc/*')",
    "FROM glob('{root}/../*')",
    "FROM sniff_csv('{root}/../secret.csv')",
    "FROM query('FROM read_text(''/etc/passwd'')')",
    "FROM read_duckdb('{root}/scores.duckdb')",
    "FROM 'https://127.0.0.1:1/x.parquet'",
    "FROM read_csv('http://127.0.0.1:1/x.csv')",
    "FROM 's3://x/y.parquet'",
    "SELECT getenv('HOME')",
    "SUMMARIZE '{root}/../secret.csv'",
    "DESCRIBE FROM '{root}/../secret.csv'",
]


@pytest.mark.parametrize("text", WRITES[::4] + READS)
def test_a_text_that_writes_or_reads_elsewhere_is_refused_with_one_line(untouched: Store, text: str) -> None:
    with pytest.raises(IconError, match="sql: ") as caught:
        untouched.answer(
            text.replace("{root}", str(untouched.root)).replace("{live}", untouched.files("quarantine")[0])
        )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def run_all(con: duckdb.DuckDBPyConnection, text: str) -> None:
    for statement in reading(con, text):
        con.execute(statement).fetchall()


@pytest.mark.parametrize("text", WRITES)
def test_the_first_wall_alone_lets_nothing_be_changed(tmp_path: Path, text: str) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE quarantine AS SELECT 1 AS reason")
        con.execute(f"COPY quarantine TO '{tmp_path}/live.parquet'; BEGIN")
        before = contents(tmp_path)
        text = text.replace("{root}", str(tmp_path)).replace("{live}", f"{tmp_path}/live.parquet")
        with pytest.raises((IconError, duckdb.Error)):
            run_all(con, text)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", [text for text in WRITES if "{" in text and "SELECT 1" not in text[:9]])
def test_with_the_first_wall_gone_the_store_is_still_not_changed(
    untouched: Store, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "reading", lambda con, text: [text])
    text = text.replace("{root}", str(untouched.root)).replace("{live}", untouched.files("quarantine")[0])
    with suppress(IconError):
        untouched.answer(text)


def test_the_database_alone_lets_a_copy_reach_no_new_file(untouched: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "reading", lambda con, text: [text])
    monkeypatch.setattr(queries, "write_only_below", lambda directory: False)
    for target in (f"{untouched.root}/new.csv", f"{untouched.root.parent}/new.csv", untouched.files("quarantine")[0]):
        with pytest.raises(IconError, match="Cannot access file"):
            untouched.answer(f"COPY (SELECT 1) TO '{target}' (FORMAT csv)")


def test_the_kernel_alone_lets_a_thread_write_in_its_directory_and_nowhere_else(tmp_path: Path) -> None:
    (inside := tmp_path / "inside").mkdir()
    (old := tmp_path / "old").write_text("kept")
    seen = dict[str, object]()

    def attempt(name: str, work: object) -> None:
        try:
            seen[name] = bool(work()) or True  # pyright: ignore
        except OSError as error:
            seen[name] = type(error).__name__

    def confined() -> None:
        if not write_only_below(inside):
            seen["unknown"] = True
            return
        attempt("inside", lambda: (inside / "new").write_text("x"))
        attempt("read", old.read_text)
        for name, work in {
            "new": lambda: (tmp_path / "new").write_text("x"),
            "over": lambda: old.write_text("x"),
            "remove": old.unlink,
            "rename": lambda: old.rename(inside / "old"),
            "link": lambda: (tmp_path / "l").symlink_to(old),
            "truncate": lambda: os.truncate(old, 0),
            "folder": lambda: (tmp_path / "d").mkdir(),
        }.items():
            attempt(name, work)

    thread = threading.Thread(target=confined)
    thread.start()
    thread.join()
    if seen.pop("unknown", False):
        pytest.skip("this kernel has no Landlock")
    assert (seen.pop("inside"), seen.pop("read")) == (True, True)
    assert set(seen.values()) <= {"PermissionError", "OSError"}, seen
    assert old.read_text() == "kept"
    (tmp_path / "after").write_text("other threads write as before")


@pytest.mark.parametrize(
    ("text", "n_rows"),
    [
        ("FROM quarantine", 4),
        ("FROM quarantine;", 4),
        ("SELECT 1; FROM quarantine -- the last one's rows", 4),
        ("-- ü; first\nSELECT 'ü;' AS a; -- second;\nFROM quarantine; ; /* third; */", 4),
        ("EXPLAIN FROM quarantine; -- why", 1),
        ('WITH q AS (FROM quarantine) SELECT * FROM q ORDER BY "row" DESC', 4),
        ("WITH RECURSIVE n AS (SELECT 1 i UNION ALL SELECT i + 1 FROM n WHERE i < 9) FROM n", 9),
        ("VALUES (1), (2)", 2),
        ("(SELECT 1)", 1),
        ("SELECT 'COPY x TO y; DELETE' AS \"delete\" /* CREATE */", 1),
        ("SELECT $$)$$", 1),
        ("PIVOT quarantine ON reason USING count(*) GROUP BY file", 1),
        ("PIVOT quarantine ON reason IN ('bad_json') USING count(*)", 4),
        ("FROM (PIVOT quarantine ON reason USING count(*) GROUP BY file) WHERE file <> 'copy'", 1),
        ("UNPIVOT (SELECT 1 a, 2 b) ON a, b", 2),
        ("SHOW DATABASES", 2),
        ("DESCRIBE quarantine", 6),
        ("SUMMARIZE quarantine", 6),
        ("EXPLAIN FROM quarantine", 1),
        ("explain analyze select 1", 1),
        ("EXPLAIN (FORMAT json) SELECT 1", 1),
        ("EXPLAIN (SELECT 1)", 1),
        ("EXPLAIN PIVOT quarantine ON reason", 1),
        ("FROM query('FROM quarantine')", 4),
        ("SELECT getvariable('x')", 1),
        ("FROM duckdb_secrets()", 0),
        ("SELECT 1 WHERE false", 0),
    ],
)
def test_whatever_only_reads_is_answered(shared: Store, text: str, n_rows: int) -> None:
    assert shared.answer(text).frame.height == n_rows


def test_order_and_names_are_those_of_the_query(shared: Store) -> None:
    frame = shared.answer('SELECT "row", "row" * 2 AS "row", 1 AS "a""b" FROM quarantine ORDER BY 1 DESC').frame
    assert frame.columns == ["row", "row_1", 'a"b']
    assert frame.rows() == [(4, 8, 1), (3, 6, 1), (2, 4, 1), (1, 2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no statement"),
        (" ;-- nothing", "no statement"),
        ("SELEC 1", "Parser Error"),
        ("SELECT 1 /* open", "unterminated"),
        ("SELECT nonsense", "Binder Error"),
        ("SELECT '" + "x" * MAX_CHARS + "'", "at most 100,000"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "expression depth"),
        ("SELECT * FROM " + "(SELECT * FROM " * 6000 + "range(1)" + ")" * 6000, "expression depth"),
        ("SELECT " + "NOT " * 20_000 + "true", "expression depth"),
        ("/*" * 40_000, "unterminated"),
    ],
    ids=lambda value: value[:20],
)
def test_a_text_that_is_no_query_gives_one_line(shared: Store, text: str, message: str) -> None:
    with pytest.raises(IconError, match=f"sql: .*{message}") as caught:
        shared.answer(text)
    assert "\n" not in str(caught.value)


def test_our_own_queries_go_through_the_same_door(shared: Store) -> None:
    assert shared.query('FROM quarantine WHERE "row" > $least', {"least": 2}).height == 2
    with pytest.raises(IconError, match="COPY is not allowed here"):
        shared.query(f"COPY quarantine TO '{shared.root}/new.csv'")
    with duckdb.connect() as con:
        assert reading(con, "SELECT 1") == ["FROM (\nSELECT 1\n)"]


# Bounds


ENDLESS = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
SPILLING = (
    "WITH x AS MATERIALIZED (SELECT md5(range::VARCHAR) AS m, range FROM range(2500000)) "
    "SELECT min(a.m)[:0] FROM x a, (FROM x LIMIT 1) b"
)
LARGE_SORT = (
    "SELECT sum(r) FROM (SELECT row_number() OVER (ORDER BY hash(a.range, b.range)) r FROM range(30000) a, "
    "range(30000) b)"
)


@pytest.mark.parametrize(
    "text", [ENDLESS, LARGE_SORT, "SELECT " + "1," * 20_000 + "1"], ids=["recursive", "sort", "binding"]
)
def test_a_query_ends_at_its_time_limit_and_says_how_to_raise_it(shared: Store, text: str) -> None:
    began = time.monotonic()
    with pytest.raises(IconError, match=r"stopped after 0.3 seconds; .*--timeout or sql.timeout_seconds"):
        shared.answer(text, Bounds(seconds=0.3, memory=1 << 30))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "bounds", "setting"),
    [
        ("SELECT list(range) FROM range(30000000)", {"memory": 64 << 20}, "sql.memory"),
        (SPILLING, {"memory": 64 << 20, "temp_space": 1 << 20}, "sql.temp_space"),
        (
            "SELECT range, md5(range::VARCHAR) FROM range(20000000)",
            {"memory": 64 << 20},
            "the result is larger than sql.memory",
        ),
    ],
    ids=["memory", "temporary space", "result"],
)
def test_a_query_that_meets_a_bound_names_its_setting(
    shared: Store, text: str, bounds: dict[str, int], setting: str
) -> None:
    with pytest.raises(IconError, match=f"{setting}.* \\(0.0. GiB\\); ask for .*, or raise it"):
        shared.answer(text, Bounds(seconds=60, threads=2, **bounds))


def test_temporary_files_lie_outside_the_store_and_go_even_after_a_kill(
    untouched: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (left := tmp_path / "icon-assets-sql-killed").mkdir()
    (left / "spilled.tmp").write_text("by a process that is gone")
    (other := tmp_path / "icon-assets-other").mkdir()
    (tmp_path / "icon-assets-sql-link").symlink_to(other)
    with spill_directory() as used:
        assert not left.exists()
        untouched.answer("SELECT 1")
        assert used.is_dir(), "another query leaves what is in use"
    assert {path.name for path in tmp_path.iterdir()} == {"icon-assets-other", "icon-assets-sql-link"}


def test_a_query_that_needs_more_than_its_memory_spills(shared: Store) -> None:
    assert shared.answer(SPILLING, Bounds(memory=64 << 20, threads=2)).frame.item() == ""


# Values of every type


VALUES = [
    ("INTERVAL '1 year 2 days 3.5 seconds'", "1 year 2 days 00:00:03.5"),
    ("union_value(a := 1)", {"a": 1}),
    ("[union_value(k := 'x')]", [{"k": "x"}]),
    ("MAP {'a': 1}", {"a": 1}),
    ("MAP {1: [2.5]}", {"1": [2.5]}),
    ("MAP {[1]: {'a': DATE 'infinity'}}", {"[1]": {"a": "infinity"}}),
    ("{'a': 1, 'b': [1, NULL], 'i': INTERVAL 1 DAY}", {"a": 1, "b": [1, None], "i": "1 day"}),
    ("row(1, 2)", [1, 2]),
    ("[1, 2]::INT[2]", [1, 2]),
    ("[]", []),
    ("'a'::ENUM('a', 'b')", "a"),
    ("'101'::BIT", "101"),
    ("'\\xAA\\x00'::BLOB", "\\xAA\\x00"),
    ("'00000000-0000-0000-0000-00000000000a'::UUID", "00000000-0000-0000-0000-00000000000a"),
    ("170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
    ("340282366920938463463374607431768211455::UHUGEINT", 2**128 - 1),
    ("repeat('9', 5000)::BIGNUM", "9" * 5000),
    ("sum(7)", 7),
    ("1.50::DECIMAL(10, 2)", "1.50"),
    ("TIME '01:02:03'", "01:02:03"),
    ("'01:02:03+05'::TIMETZ", "01:02:03+05"),
    ("'01:02:03.123456789'::TIME_NS", "01:02:03.123456789"),
    ("'2020-01-01 01:02:03.123456789'::TIMESTAMP_NS", "2020-01-01 01:02:03.123456789"),
    ("'2020-01-01'::TIMESTAMP_S", "2020-01-01 00:00:00"),
    ("'2020-01-01'::TIMESTAMP_MS", "2020-01-01 00:00:00"),
    ("'2020-01-01 12:00:00+00'::TIMESTAMPTZ::VARCHAR::TIMESTAMPTZ = '2020-01-01 12:00:00+00'::TIMESTAMPTZ", True),
    ("'infinity'::DATE", "infinity"),
    ("'-infinity'::TIMESTAMP", "-infinity"),
    ("'infinity'::TIMESTAMPTZ", "infinity"),
    ("'290000-01-01'::TIMESTAMP", "290000-01-01 00:00:00"),
    ("'5877642-06-25 (BC)'::DATE", "5877642-06-25 (BC)"),
    ("'nan'::DOUBLE", "NaN"),
    ("'-inf'::FLOAT", "-Infinity"),
    ("['nan'::DOUBLE, 'inf'::DOUBLE, 1.5]", ["NaN", "Infinity", 1.5]),
    ("""'{"a": 1}'::JSON""", '{"a": 1}'),
    ("{'a': 1}::VARIANT", {"a": 1}),
    ("'POINT (1 2)'::GEOMETRY", "POINT (1 2)"),
    ("NULL", None),
    ("NULL::INT[]", None),
    ("chr(0) || chr(27) || '[2J'", "\0\x1b[2J"),
    ("{'t': chr(27) || '[2J'}", {"t": "\x1b[2J"}),
    ("true", True),
    ("1e300", 1e300),
]


def test_a_value_of_any_type_is_told_in_strict_json(shared: Store) -> None:
    query = ", ".join(f"({expression}) AS v{n}" for n, (expression, _) in enumerate(VALUES))
    answer = shared.answer(f"SELECT {query} UNION ALL SELECT {', '.join(['NULL'] * len(VALUES))}")
    text = strict_json(answer.rows())
    assert text.isascii()
    assert text.isprintable()
    read = json.loads(text, parse_constant=pytest.fail)
    assert list(read[0].values()) == [value for _, value in VALUES]
    assert set(read[1].values()) == {None}


def test_times_keep_the_form_that_they_had(shared: Store) -> None:
    (row,) = shared.answer("SELECT '2020-01-01 12:00:00.5+00'::TIMESTAMPTZ AS t").rows()
    assert row["t"].endswith(":00")
    assert pl.Series([row["t"]]).str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z").dt.hour().item() is not None


# Workspaces that were copied or moved


COUNT = "SELECT count(*) AS n FROM quarantine"


def plainly(database: Path) -> object:
    """What a DuckDB client that knows nothing of us reads there."""
    with duckdb.connect(str(database), read_only=True) as con:
        return con.execute(COUNT).fetchone()


@pytest.mark.parametrize("old", ["present", "absent"])
def test_a_copy_is_never_taken_for_the_workspace_that_it_was_copied_from(tmp_path: Path, old: str) -> None:
    first = lay_out(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Store(tmp_path / "second" / "store")
    first.replace("quarantine", shard_rows("a", 1), shard="a")
    first.publish()
    if old == "absent":
        shutil.rmtree(tmp_path / "first")
    with pytest.raises(duckdb.Error, match=r"published as .*first|No files found"):
        plainly(second.path)
    assert second.query_published(COUNT).item() == 4
    assert plainly(second.path) == (4,), "it was published again"


def test_a_copy_attached_beside_its_original_is_not_read_as_that(tmp_path: Path) -> None:
    first = lay_out(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{first.path}' AS first (READ_ONLY)")
        assert con.execute("SELECT count(*) FROM first.quarantine").fetchone() == (4,)
        con.execute(f"ATTACH '{tmp_path}/second/store/scores.duckdb' AS second (READ_ONLY)")
        with pytest.raises(duckdb.Error, match=r"published as .*first"):
            con.execute("SELECT count(*) FROM second.quarantine")


def test_a_workspace_moved_away_and_back_is_read_wherever_it_lies(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "here's one")
    moved = store.root.parent.rename(tmp_path / "there")
    there = Store(moved / "store")
    there.publish_here()
    assert plainly(there.path) == (4,)
    back = Store(moved.rename(tmp_path / "here's one") / "store")
    with pytest.raises(duckdb.Error, match=r"published as .*there|No files found"):
        plainly(back.path)
    back.publish_here()
    assert plainly(back.path) == (4,)
    written = back.path.stat().st_ino
    back.publish_here()
    assert back.path.stat().st_ino == written, "nothing to do"


def test_a_link_to_a_workspace_is_that_workspace(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "first")
    (tmp_path / "link").symlink_to(tmp_path / "first")
    linked = Store(tmp_path / "link" / "store")
    assert (plainly(linked.path), linked.query_published(COUNT).item()) == ((4,), 4)
    linked.publish()
    assert plainly(store.path) == (4,)


def test_a_copy_that_may_not_be_written_to_is_read_all_the_same(tmp_path: Path) -> None:
    lay_out(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    seen = list[object]()

    def read() -> None:
        if not write_only_below(elsewhere):
            seen.append(None)
            return
        store = Store(tmp_path / "second" / "store")
        store.publish_here()
        seen.append(store.query_published(COUNT).item())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(elsewhere))
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    if seen == [None]:
        pytest.skip("this kernel has no Landlock")
    assert seen == [4]
    with pytest.raises(duckdb.Error, match=r"published as .*first|No files found"):
        plainly(tmp_path / "second" / "store" / "scores.duckdb")


def test_a_published_file_of_an_earlier_version_or_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    store.path.unlink()
    with duckdb.connect(str(store.path)) as con:
        con.execute("CREATE VIEW quarantine AS SELECT 1 FROM range(7)")
    assert store.query_published(COUNT).item() == 4
    store.path.chmod(0o644)
    store.path.write_bytes(b"no database")
    store.publish_here()
    assert store.query_published(COUNT).item() == 4


def test_a_workspace_from_somebody_else_reads_no_files_outside_of_it(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "theirs")
    secret = tmp_path / "secret.parquet"
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT 'mine' AS a) TO '{secret}'")
    store.path.chmod(0o644)
    with duckdb.connect(str(store.path)) as con:
        files = [str(secret), *(row[0] for row in con.execute("SELECT file FROM delta.files").fetchall())]
        con.execute(f"CREATE OR REPLACE VIEW delta.files AS SELECT unnest({files}) AS file")
        con.execute(f"CREATE OR REPLACE VIEW quarantine AS FROM '{secret}'")
    assert plainly(store.path) == (1,), "the file is as hostile as it is meant to be"
    with pytest.raises(IconError, match="Cannot access file"):
        store.query_published("FROM quarantine")


def test_the_guard_of_a_published_file_leaves_pruning_to_duckdb(tmp_path: Path) -> None:
    store = lay_out(tmp_path)
    with duckdb.connect(str(store.path), read_only=True) as con:
        plan = con.execute("EXPLAIN FROM delta.quarantine WHERE shard = 'a' AND \"row\" = 3").fetchall()[0][1]
    assert "row = 3" in plan.split("Read Parquet")[1] or "row=3" in plan.split("Read Parquet")[1], plan


def test_bounds_are_read_from_the_settings_in_the_units_that_people_write() -> None:
    choice = SqlSettings.model_validate({"timeout_seconds": 7, "memory": "2GB", "threads": 1, "temp_space": "3 GiB"})
    assert Bounds.of(choice) == Bounds(7, 2 * 10**9, 1, 3 * 2**30)
    assert Bounds.of(SqlSettings(), 5) == Bounds(5, None, None, None)
