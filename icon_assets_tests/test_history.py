"""Dagster's history: made once whoever comes first, and one line when it or its settings are broken."""

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from icon_assets.core.errors import IconError
from icon_assets.history import history_error, load_instance
from icon_assets.home import dagster_home
from icon_assets.workspace import Workspace
from icon_assets_tests.e2e.processes import SERVER

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def _new_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dagster") / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with load_instance(home):
        return home


@pytest.fixture
def home(_new_home: Path, tmp_path: Path) -> Path:
    """A Dagster home with a whole history: a copy to spoil."""
    return Path(shutil.copytree(_new_home, tmp_path / "home"))


def opened(home: Path, barrier: Barrier | None, said: Path) -> None:
    if barrier:
        barrier.wait(60)
    try:
        with load_instance(home) as instance:
            said.write_text(f"{len(instance.get_runs())} runs")
    except BaseException as error:  # noqa: BLE001  (whatever it is, the test shows it)
        said.write_text(repr(error))


def heads(home: Path) -> list[int]:
    """How many versions each of the databases says it has."""
    paths = [home / "history" / "runs.db", home / "history" / "runs" / "index.db", home / "schedules" / "schedules.db"]
    counts = []
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            counts.append(connection.execute("SELECT count(*) FROM alembic_version").fetchone()[0])
    return counts


def test_processes_that_come_first_at_the_same_moment_make_one_history(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    barrier = SERVER.Barrier(4)
    said = [tmp_path / f"said{number}.txt" for number in range(4)]
    processes = [SERVER.Process(target=opened, args=(tmp_path, barrier, each)) for each in said]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [each.read_text() for each in said] == ["0 runs"] * 4
    assert heads(tmp_path) == [1, 1, 1]


def test_a_process_killed_while_it_makes_the_history_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    for delay in (0.02, 0.1, 0.25):
        process = SERVER.Process(target=opened, args=(tmp_path, None, tmp_path / "killed.txt"))
        process.start()
        until = time.monotonic() + 30
        while not list(tmp_path.glob(".history.*.partial")) and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert not (tmp_path / "history").exists() or heads(tmp_path)[:2] == [1, 1], "whole or absent"
        if (tmp_path / "history").exists():
            break
    with load_instance(tmp_path) as instance:
        assert instance.get_runs() == []
    assert heads(tmp_path) == [1, 1, 1]
    assert list(tmp_path.glob(".history.*.partial")) == []


def written(name: str, content: bytes) -> Change:
    return lambda home: (home / name).write_bytes(content)


def executed(name: str, sql: str) -> Change:
    def execute(home: Path) -> None:
        with closing(sqlite3.connect(home / name)) as connection:
            connection.execute(sql)
            connection.commit()

    return execute


@pytest.mark.parametrize(
    ("spoil", "name", "why"),
    [
        (written("history/runs.db", b"garbage " * 9), "history/runs.db", "file is not a database"),
        (written("history/runs/index.db", b"\0" * 9000), "history/runs/index.db", "not a database"),
        (written("schedules/schedules.db", b"garbage " * 9), "schedules/schedules.db", "not a database"),
        (lambda home: os.truncate(home / "history/runs.db", 8192), "history/runs.db", "malformed"),
        (
            executed("history/runs.db", "INSERT INTO alembic_version VALUES ('5771160a95ad')"),
            "history/runs.db",
            "2 versions",
        ),
        (executed("history/runs.db", "DROP TABLE run_tags"), "history/runs.db", "no table run_tags"),
        (executed("history/runs/index.db", "DROP TABLE asset_keys"), "history/runs/index.db", "no table asset_keys"),
    ],
)
def test_a_broken_history_is_one_line_that_says_what_to_move_away(
    home: Path, spoil: Change, name: str, why: str
) -> None:
    spoil(home)
    with pytest.raises(IconError) as refused, load_instance(home):
        pass
    line = str(refused.value)
    assert line.startswith(f"{home / name}: Dagster's history is broken (")
    assert why in line
    assert f"move {home / 'history'} and {home / 'schedules'} away" in line
    assert "are not lost" in line
    assert "\n" not in line


def test_moving_a_broken_history_away_is_the_way_out(home: Path) -> None:
    (home / "history" / "runs.db").write_bytes(b"garbage " * 9)
    for folder in ("history", "schedules"):
        (home / folder).rename(home.parent / folder)
    with load_instance(home) as instance:
        assert instance.get_runs() == []


@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "history/runs", "schedules"])
def test_what_is_missing_from_a_history_is_made_again(home: Path, name: str) -> None:
    shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink()
    with load_instance(home) as instance:
        assert instance.get_runs() == []
    assert heads(home) == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("run_retries: [", "not valid YAML"),
        ("- a list", "must hold keys such as `run_retries:`, not list"),
        ("nonsense: 1", 'unexpected config entry "nonsense"'),
        ("run_monitoring: {enabled: maybe}", "run_monitoring.enabled: Invalid scalar"),
        ("concurrency: 3", "concurrency: "),
        ("storage: 7", "storage: "),
        ("concurrency: {pools: {granularity: bogus}}", "Found value `bogus` for `granularity`"),
        ("run_launcher: {module: nowhere, class: X}", "run_launcher: no class nowhere.X"),
        ("run_launcher: {module: dagster, class: NoLauncher}", "run_launcher: no class dagster.NoLauncher"),
        ("run_launcher: {module: dagster, class: asset}", "run_launcher: dagster.asset is none of"),
        (
            "compute_logs: {module: dagster._core.storage.local_compute_log_manager, class: LocalComputeLogManager, "
            "config: {x: 1}}",
            'compute_logs.config: Received unexpected config entry "x"',
        ),
        ("storage: {sqlite: {base_dir: {env: NOT_SET_ANYWHERE}}}", '"NOT_SET_ANYWHERE" which is not set'),
    ],
)
def test_garbage_in_dagster_yaml_is_one_line_with_file_and_key(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "dagster.yaml").write_text(text)
    with pytest.raises(IconError) as refused, load_instance(tmp_path):
        pass
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'dagster.yaml'}: ")
    assert fault in line
    assert line.endswith("; correct it, or move the file away: the next command writes the default one")
    assert "\n" not in line
    assert not (tmp_path / "history").exists(), "nothing is made from settings that can't be used"


def test_the_shipped_dagster_yaml_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "settings.yaml").write_text("{}")
    with load_instance(dagster_home(Workspace.load(tmp_path))) as instance:
        assert instance.run_retries_enabled
    monkeypatch.delenv("DAGSTER_HOME")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("no such table: runs", "is broken (no such table: runs)"),
        ("database is locked", "another process keeps it locked"),
        ("disk I/O error", "could not be written (disk I/O error)"),
    ],
)
def test_errors_of_the_history_while_it_is_used_name_their_cause(tmp_path: Path, said: str, line: str) -> None:
    assert line in str(history_error(tmp_path, OperationalError("SELECT", {}, sqlite3.OperationalError(said))))


def test_a_home_on_another_storage_gets_no_sqlite_files(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(f"storage: {{sqlite: {{base_dir: {elsewhere}}}}}")
    with load_instance(home):
        pass
    assert heads(elsewhere) == [1, 1, 1]
    assert not (home / "history").exists()
