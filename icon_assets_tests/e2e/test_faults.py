"""Kills at chosen points, a user who may not write, files that may not grow, a ledger with holes: the short form of
`benchmarks/faults.py`."""

import errno
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from icon_assets.cli import main
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.e2e import faults
from icon_assets_tests.e2e.processes import start
from icon_assets_tests.e2e.test_kills import assert_equal, assert_tidy, assert_whole, finish

READING = (["status"], ["sql", "SELECT count(*) FROM samples"], ["trust"])


def run(workspace: Workspace, *arguments: str, fault: Callable[[], None] | None = None) -> tuple[int | None, str]:
    """Exit code (negative: the signal that ended it), and what was printed."""
    said = workspace.root.parent / "said.txt"
    process = start(workspace.root, *arguments, out=said, fault=fault)
    process.join(120)
    return process.exitcode, said.read_text()


@pytest.fixture
def done(undisturbed: Callable[[], Workspace], tmp_path: Path) -> Workspace:
    """A copy of a finished workspace, to spoil."""
    shutil.copytree(undisturbed().root, tmp_path / "workspace")
    workspace = Workspace.load(tmp_path / "workspace")
    Store(workspace.store_dir).publish()
    return workspace


def test_a_run_killed_between_ledger_row_and_publish_or_before_the_row_is_gone_on_with(
    make_busy: Callable[..., Workspace],
) -> None:
    workspace = make_busy()
    stages = ("run", "--select", "raw_pool", "base_model")
    record = "icon_assets.core.store.ledger:record"
    for where in ("icon_assets.core.store.tables:Store.publish", record, record):
        code, said = run(workspace, *stages, fault=partial(faults.die_around, where, 1, "before"))
        assert code == -9, said
        assert_whole(workspace)
    finish(workspace, *stages[1:])
    store = Store(workspace.store_dir)
    made = store.query('SELECT asset, "partition", count(*) AS n FROM ledger GROUP BY ALL')
    assert made.height == 4
    assert store.query("FROM models").height == 1
    assert made["n"].to_list() == [1] * 4, "what was recorded is not made again"
    assert_whole(workspace)
    assert_tidy(workspace)


def test_a_run_killed_while_dagster_s_home_is_made_is_gone_on_with(make_busy: Callable[..., Workspace]) -> None:
    workspace = make_busy()
    home = workspace.root / "dagster_home"
    for number in (1, 3):
        code, said = run(
            workspace, "run", "--select", "raw_pool", fault=partial(faults.die_at_change, number, str(home))
        )
        assert code == -9, said
    finish(workspace, "--select", "raw_pool")


def test_who_may_only_read_can_read_everything_and_is_told_in_one_line_what_could_not_be_written(
    done: Workspace,
) -> None:
    faults.belong_to_somebody_else(done.root)
    for command in READING:
        code, said = run(done, *command, fault=faults.give_up_privileges)
        assert (code, "could not" in said) == (0, False), said
    for command in (["run"], ["report"]):
        code, said = run(done, *command, fault=faults.give_up_privileges)
        assert code == 1
        assert len(said.splitlines()) == 1, said
        assert "could not be written" in said


def test_with_files_that_may_not_grow_a_run_ends_with_one_line_and_loses_nothing(
    make_busy: Callable[..., Workspace], undisturbed: Callable[[], Workspace]
) -> None:
    workspace = make_busy()
    for kibibytes in (1, 100, 300):
        code, said = run(workspace, "run", fault=partial(faults.limit_files, kibibytes << 10))
        assert code == 1, said
        assert said.splitlines()[-1].startswith("icon-assets: "), said
        assert "could not be written" in said.splitlines()[-1]
        assert_whole(workspace)


@pytest.mark.parametrize(
    "says", [MemoryError(), OSError(errno.ENOMEM, "x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line(
    says: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise says

    monkeypatch.setenv("ICON_WORKSPACE", "")  # put back afterwards
    monkeypatch.setattr(Workspace, "load", fail)
    assert main(["-w", str(tmp_path), "status"]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("icon-assets: out of memory (")
    says = KeyError("another fault")
    with pytest.raises(KeyError):
        main(["-w", str(tmp_path), "status"])


def test_without_its_rows_of_the_ledger_a_product_is_made_again_and_no_pair_is_computed(
    done: Workspace, undisturbed: Callable[[], Workspace]
) -> None:
    store = Store(done.store_dir)
    spent = store.query("FROM delta.scoring_costs").height
    store.replace("ledger", store.query("FROM delta.ledger WHERE asset IN ('probe_set', 'checkpoint')"))
    finish(done)
    assert store.query("FROM delta.scoring_costs").height == spent
    assert_equal(store, Store(undisturbed().store_dir))
