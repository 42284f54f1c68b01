"""The report as an asset: made of what is on record, kept while that stays the same."""

import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from icon_assets.core.store import ledger
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A
from icon_assets_tests.selected import choose, selected_workspace


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return selected_workspace(tmp_path / "ws", {"a.jsonl": POOL_A}, ("icon", "random"))


def report(workspace: Workspace, instance: dg.DagsterInstance) -> Outcome:
    (outcome,) = run_stages(build_assets(workspace), workspace, instance, ("report",))
    return outcome


def test_the_report_is_kept_until_what_it_shows_or_its_file_changes(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    first = report(workspace, instance)
    page = workspace.exports_dir / "report.html"
    assert (first.error, first.warning, first.metadata["changed"]) == (None, None, True)
    made = page.read_bytes()
    assert not report(workspace, instance).metadata["changed"]
    page.unlink()
    assert report(workspace, instance).metadata["changed"]
    assert page.read_bytes() == made
    store = Store(workspace.store_dir)
    choose(store, "random", 0.75, [event.as_input() for event in ledger.latest(store, "sample_scores").values()])
    again = report(workspace, instance)
    assert again.metadata["changed"]
    assert again.metadata["digest"] != first.metadata["digest"]
    assert page.read_bytes() != made


def test_a_page_that_somebody_else_put_there_is_not_written_over(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    report(workspace, instance)
    (workspace.exports_dir / "report.html").write_text("scribbled over")
    assert "is not a report of icon-assets; choose a different --out" in (report(workspace, instance).error or "")
    assert (workspace.exports_dir / "report.html").read_text() == "scribbled over"


def test_torch_is_not_needed_for_it(workspace: Workspace, tmp_path: Path) -> None:
    import subprocess

    code = "import sys; from icon_assets.cli import main; main(['report', '--json']); assert 'torch' not in sys.modules"
    environment = {"ICON_WORKSPACE": str(workspace.root), "PATH": "", "MPLCONFIGDIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment, cwd=root)
