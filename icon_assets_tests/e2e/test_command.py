"""The command line as a user runs it: real processes, a real store, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, alpaca, write_jsonl
from icon_assets_tests.selected import selected_workspace

MakeWorkspace = Callable[..., Workspace]
SCORING = ["--select", "raw_pool", "probe_set", "base_model", "probe_baseline", "sample_scores"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ICON_", "DAGSTER_"))}


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "icon_assets.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )


def test_a_new_workspace_is_laid_out_and_not_overwritten(tmp_path: Path) -> None:
    made = command("init", tmp_path / "mine")
    assert made.returncode == 0, made.stderr
    assert {p.name for p in (tmp_path / "mine").iterdir()} == {"settings.yaml", "pool", "probes", "eval"}
    again = command("init", tmp_path / "mine", "--json")
    assert again.returncode == 1
    assert "exists already" in json.loads(again.stdout)["error"]
    status = command("-w", tmp_path / "mine", "status", "--json")
    assert json.loads(status.stdout)["samples"] == 0


def test_data_do_not_steer_the_terminal_they_are_shown_on(make_workspace: MakeWorkspace) -> None:
    root = make_workspace().root
    write_jsonl(root / "pool" / "c.jsonl", [alpaca("\x1b[31mred\x07\nend", "\x9b2J.")])
    assert command("-w", root, "run", "--select", "raw_pool").returncode == 0
    shown = command("-w", root, "sql", "SELECT instruction, response FROM samples WHERE file = 'c.jsonl'").stdout
    assert "[31mred end" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_run_status_sql_and_every_shipped_query_tell_of_the_same_run(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    root = workspace.root
    ran = command("-w", root, "run")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Leaderboard" in ran.stdout
    assert "new pairs" in ran.stdout
    assert ran.stderr == ""
    status = json.loads(command("-w", root, "status", "--json").stdout)
    assert (status["samples"], status["unique_samples"], status["probes"], status["pairs_stored"]) == (
        7,
        6,
        4,
        24,
    )
    rows = command("-w", root, "sql", "SELECT count(*) AS n FROM sample_scores WHERE control = 'none'", "--json")
    assert json.loads(rows.stdout) == [{"n": 6}]
    examples = sorted((Path(__file__).parents[2] / "icon_assets" / "sql" / "examples").glob("*.sql"))
    assert len(examples) >= 5
    for example in examples:
        assert Store(workspace.store_dir).answer(example.read_text()).frame.columns, example.name
    again = command("-w", root, "run", "--json")
    assert again.returncode == 0
    assert sum(r.get("new_pairs", 0) for r in json.loads(again.stdout)["runs"] if r["changed"]) == 0


def test_a_selection_is_exported_and_reported_on_without_loading_a_model(tmp_path: Path) -> None:
    root = selected_workspace(tmp_path / "ws", {"a.jsonl": POOL_A}).root
    exported = json.loads(command("-w", root, "export", "--arm", "icon", "--format", "messages", "--json").stdout)
    assert exported["directory"] == str(root / "exports" / "icon-messages")
    assert (exported["samples"], exported["files"]) == (2, ["train.jsonl"])
    said = command("-w", root, "export", "--arm", "icon", "--format", "parquet", "--out", tmp_path / "out")
    assert said.stdout.startswith(f"2 samples of arm icon as parquet in {tmp_path / 'out'} (digest ")
    assert (tmp_path / "out" / "train.parquet").is_file()
    reported = json.loads(command("-w", root, "report", "--json").stdout)
    assert reported["path"] == str(root / "exports" / "report.html")
    assert "leaderboard" in reported["missing"]
    again = command("-w", root, "report")
    assert again.stdout.startswith(str(root / "exports" / "report.html"))
    assert again.stderr == ""


ENDLESS = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
SORT = (
    "SELECT sum(r) FROM (SELECT row_number() OVER (ORDER BY hash(a.range, b.range)) r FROM range(90000) a, "
    "range(90000) b)"
)


@pytest.mark.parametrize(
    ("which", "query"), [(signal.SIGINT, ENDLESS), (signal.SIGTERM, SORT)], ids=["SIGINT", "SIGTERM"]
)
def test_a_query_that_is_told_to_stop_stops_at_once_and_leaves_nothing(
    tmp_path: Path, make_workspace: MakeWorkspace, which: signal.Signals, query: str
) -> None:
    workspace = make_workspace()
    Store(workspace.store_dir).publish()
    (spill := tmp_path / "spill").mkdir()
    said = tmp_path / "said.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(spill))
        process = subprocess.Popen(
            [sys.executable, "-m", "icon_assets.cli", "-w", str(workspace.root), "sql", query],
            stderr=said.open("w"),
            env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )
    until = time.monotonic() + 60
    while not list(spill.iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)  # the query is under way
    assert process.poll() is None, said.read_text()
    process.send_signal(which)
    began = time.monotonic()
    assert process.wait(30) == 130
    assert time.monotonic() - began < 2
    assert said.read_text() == "icon-assets: sql: interrupted\n"
    assert list(spill.iterdir()) == []


def test_a_moved_workspace_is_published_again_by_any_command(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    Store(workspace.store_dir).publish()
    moved = workspace.root.rename(workspace.root.with_name("moved"))
    assert command("-w", moved, "status").returncode == 0
    with duckdb.connect(str(moved / "store" / "scores.duckdb"), read_only=True) as con:
        assert con.execute("SELECT root FROM delta.origin").fetchone() == (str(moved / "store"),)


def test_names_errors_and_values_of_a_query_do_not_steer_the_terminal(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    Store(workspace.store_dir).publish()
    steering = "chr(27) || '[31m' || chr(8238)"
    shown = command(
        "-w",
        workspace.root,
        "sql",
        f"SELECT {steering} AS \"a\x1b[2Jb\", {{'a': {steering}}} AS s, MAP {{1: INTERVAL 1 DAY}} AS m",
    )
    assert "[31m" in shown.stdout
    assert "1 day" in shown.stdout
    failed = command("-w", workspace.root, "sql", f"SELECT ({steering})::INT")
    assert failed.returncode == 1
    assert "[31m" in failed.stderr
    assert all(each.isprintable() or each == "\n" for each in shown.stdout + failed.stderr)
    assert "\\u001b" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sql", "SELECT nonsense FROM samples"], 1, "icon-assets: sql: "),
        (["sql", "COPY (SELECT 1) TO 'x.csv'"], 1, "icon-assets: sql: COPY is not allowed here"),
        (["sql", "SELECT 1", "--timeout", "0"], 2, "must be more than 0"),
        (["run", "--select", "nonsense"], 1, "icon-assets: nonsense: no such asset"),
        (["export", "--arm", "icon", "--format", "alpaca"], 1, "icon-assets: arm icon: has no selection yet"),
        (["export", "--arm", "icon", "--format", "csv"], 2, "'csv' is not one of 'alpaca', 'messages', 'parquet'"),
        (["report", "--out", "/"], 1, "icon-assets: /: belongs to the workspace"),
        (["frobnicate"], 2, "icon-assets: error: No such command 'frobnicate'"),
        (["run", "--frobnicate"], 2, "icon-assets run: error: No such option: --frobnicate"),
        ([], 2, "COMMAND"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(
    make_workspace: MakeWorkspace, arguments: list[str], code: int, message: str
) -> None:
    workspace = make_workspace()
    Store(workspace.store_dir).publish()
    failed = command("-w", workspace.root, *arguments)
    assert failed.returncode == code
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_a_failing_asset_makes_the_run_fail_with_its_line(make_workspace: MakeWorkspace) -> None:
    root = make_workspace(model={"name": "no such model"}).root
    failed = command("-w", root, "run", *SCORING)
    assert failed.returncode == 1
    assert "✗ base_model" in failed.stdout
    assert "model.name: 'no such model' is neither" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr


def test_a_scoring_run_that_is_killed_goes_on_without_a_lost_or_doubled_pair(
    make_workspace: MakeWorkspace,
) -> None:
    workspace = make_workspace(
        scoring={
            "max_context_tokens": 128,
            "max_prompt_tokens": 64,
            "max_response_tokens": 64,
            "tokens_per_forward": 64,
            "commit_seconds": 0.01,
        }
    )
    rows = [alpaca(f"Question {n} about number {n * 17}?", f"The answer is {n * 31}.") for n in range(40)]
    write_jsonl(workspace.root / "pool" / "many.jsonl", rows)
    store = Store(workspace.store_dir)
    killed_at = [run_until_killed(workspace, store, target) for target in (1, 90)]
    assert killed_at == sorted(killed_at)
    assert 0 < killed_at[0] < 46 * 4, "killed in the middle of the work"
    finished = command("-w", workspace.root, "run", *SCORING, "--json")
    assert finished.returncode == 0, finished.stdout
    computed = [r["new_pairs"] for r in json.loads(finished.stdout)["runs"] if r["asset"] == "sample_scores"]
    assert sum(computed) == 46 * 4 - killed_at[-1], "only what was not stored is computed"
    pairs = store.query("SELECT count(*) AS n, count(DISTINCT (sample_id, probe_id)) AS u FROM pair_scores").row(0)
    assert pairs == (46 * 4, 46 * 4)
    assert same_scores(store, undisturbed(workspace))


def run_until_killed(workspace: Workspace, store: Store, target: int) -> int:
    """Start scoring, kill -9 once more than `target` pairs are stored; returns how many are."""
    process = subprocess.Popen(
        [sys.executable, "-m", "icon_assets.cli", "-w", str(workspace.root), "run", *SCORING],
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if stored(store) > target:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    return stored(store)


def stored(store: Store) -> int:
    return store.query("SELECT count(*) FROM pair_scores").item()


def undisturbed(workspace: Workspace) -> Store:
    """The same inputs scored in one go in a second workspace."""
    import shutil

    twin = workspace.root.with_name("twin")
    shutil.copytree(workspace.root, twin, ignore=shutil.ignore_patterns("store", "dagster_home", "models"))
    settings: dict[str, Any] = yaml.safe_load((twin / "settings.yaml").read_text())
    (twin / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert command("-w", twin, "run", *SCORING).returncode == 0
    return Store(Workspace.load(twin).store_dir)


def same_scores(a: Store, b: Store) -> bool:
    sql = "SELECT control, sample_id, contribution, n_probes FROM sample_scores ORDER BY control, sample_id"
    one = a.query(sql)
    two = b.query(sql)
    assert one.height == two.height > 0
    difference = (one["contribution"] - two["contribution"]).abs().max()
    return one.drop("contribution").equals(two.drop("contribution")) and difference < 1e-5  # pyright: ignore
