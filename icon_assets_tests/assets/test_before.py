"""A workspace that an earlier version made is read as it is: nothing in it is computed again.

`before/workspace.tar.xz` was made by version 0.1 (commit 021820c): the inputs of `lay_out` with thirty more samples, a
random model of two layers in `tiny-llama`, every arm, one seed, everything materialized. Dagster's home, the report and
the published file are left out, as when a workspace goes to a different machine.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import STAGES

# Made again without the model: the leaderboard also records what its differences refer to, the report was left out.
MADE_AGAIN = {"leaderboard", "report"}
COMPARED_AGAIN = "leaderboard_differences"
VIEWS = (
    "samples",
    "quarantine",
    "probes",
    "pair_scores",
    "control_scores",
    "sample_scores",
    "scoring_costs",
    "current_scores",
    "sample_features",
    "predicted_scores",
    "selections",
    "trust_figures",
    "checkpoints",
    "eval_results",
    "leaderboard",
    "leaderboard_differences",
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    root = tmp_path / "workspace"
    with tarfile.open(Path(__file__).parent / "before" / "workspace.tar.xz") as archive:
        archive.extractall(root, filter="data")
    monkeypatch.chdir(root)  # its settings name the model by a relative path
    return Workspace.load(root)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def test_nothing_of_an_earlier_version_is_computed_again(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    store = Store(workspace.store_dir)
    before = rows(store)
    assert all(frame.height for frame in before.values())
    plan = WorkspaceResource(root=str(workspace.root)).plan()
    assert set(plan.shards["status"]) == {"unchanged"}
    assert (plan.pairs, plan.control_pairs) == (0, 0)

    outcomes = list(run_stages(build_assets(workspace), workspace, instance, STAGES))
    assert [(outcome.name, outcome.error) for outcome in outcomes if outcome.error] == []
    assert {o.name.split("[")[0] for o in outcomes if o.metadata["changed"]} <= MADE_AGAIN
    assert len(outcomes) > 60
    after = rows(store)
    assert [name for name in VIEWS if name != COMPARED_AGAIN and not after[name].equals(before[name])] == []
    # The same draws of the bootstrap; a different CPU sums them in a different order.
    assert_frame_equal(after[COMPARED_AGAIN], before[COMPARED_AGAIN], rel_tol=1e-9, abs_tol=1e-12)


def rows(store: Store) -> dict[str, pl.DataFrame]:
    return {view: store.query(f"FROM {view} ORDER BY ALL") for view in VIEWS}
