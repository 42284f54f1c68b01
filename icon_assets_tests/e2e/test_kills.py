"""kill -9 at twenty moments between the first file and the last metric: afterwards all is as if nothing had
happened."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from icon_assets.core.store.tables import Store
from icon_assets.launched import UNFINISHED
from icon_assets.workspace import Workspace
from icon_assets_tests.e2e.conftest import read_all_the_while
from icon_assets_tests.e2e.processes import kill, start

# What is run, how often it is killed, after how many new files at most, and which ones count. (Times, files) stay below
# what the stage writes in all, so that every kill meets work.
STAGES = {
    "ingest": (["raw_pool", "probe_set"], 4, 6, "store/tables"),
    "scoring": (["base_model", "probe_baseline", "sample_scores"], 6, 15, "store/tables"),
    "publishing": (["selected_subset"], 3, 1, "store/.scores"),
    "training": (["checkpoint"], 4, 14, "checkpoints"),
    "evaluation": (["base_eval", "eval_results", "leaderboard"], 3, 4, "store/tables"),
}
# What must be equal: all but the time things took, and when.
EQUAL = {
    "shards": "* EXCLUDE (ingested_at, mtime_ns)",
    "samples": "*",
    "quarantine": "*",
    "probe_candidates": "*",
    "models": "* EXCLUDE prepared_at",
    "score_keys": "* EXCLUDE created_at",
    "contexts": "*",
    "pair_scores": "*",
    "control_scores": "*",
    "sample_scores": "*",
    "selections": "*",
    "checkpoints": "* EXCLUDE (created_at, seconds)",
    "checkpoint_samples": "*",
    "loss_curves": "*",
    "eval_results": "*",
}


# What a reader sees of each shard: its rows as recorded and as found, those that stand in no shard before it, their
# scores.
SEEN = """
    SELECT n_samples, count(*) AS found, count(*) FILTER (NOT is_duplicate) AS own, count(c.sample_id) AS scored
    FROM shards JOIN samples s USING (shard)
    LEFT JOIN (FROM current_scores WHERE control = 'none') c ON c.file = s.file AND c."row" = s."row"
    GROUP BY shard, n_samples
"""


def test_after_twenty_kills_everything_is_as_in_an_undisturbed_run(
    make_busy: Callable[..., Workspace], undisturbed: Callable[[], Workspace]
) -> None:
    workspace = make_busy()
    draw = random.Random(20)
    kills = 0
    store = Store(workspace.store_dir)
    with read_all_the_while(store, SEEN) as answers:
        for select, times, most, counted in STAGES.values():
            for _ in range(times):
                kills += killed_at_work(workspace, select, counted, draw.randint(1, most), draw.uniform(0, 0.05))
                assert_whole(workspace)
            finish(workspace, "--select", *select)
        finish(workspace)
    assert kills == 20
    assert len(answers) > 100
    assert all(found == n and scored in (0, own) for answer in answers for n, found, own, scored in answer)
    assert_equal(store, Store(undisturbed().store_dir))
    assert_tidy(workspace)


def test_the_pool_slot_that_a_killed_run_held_is_given_back(make_busy: Callable[..., Workspace]) -> None:
    workspace = make_busy()
    finish(workspace, "--select", "raw_pool", "probe_set", "base_model")
    assert killed_at_work(workspace, ["probe_baseline"], "store/tables/control_scores", 1, 0)
    assert held_slots(workspace) == 1, "the kill left it behind"
    finish(workspace, "--select", "probe_baseline")
    assert held_slots(workspace) == 0


def killed_at_work(workspace: Workspace, select: list[str], counted: str, after: int, delay: float) -> bool:
    """Kill a run a moment after it has written so many files; whether it was alive until then."""
    before = written(workspace.root, counted)
    process = start(workspace.root, "run", "--select", *select)
    while process.is_alive() and len(written(workspace.root, counted) - before) < after:
        time.sleep(0.002)
    time.sleep(delay)
    return kill(process)


def written(root: Path, counted: str) -> set[str]:
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)  # noqa: PTH118
    return {path for path in paths if path.startswith(str(root / counted))}


def finish(workspace: Workspace, *select: str) -> None:
    said = workspace.root / "said.txt"
    process = start(workspace.root, "run", *select, out=said)
    process.join(120)
    assert process.exitcode == 0, said.read_text()


def assert_whole(workspace: Workspace) -> None:
    """Nobody sees half of anything: not in the published views, and not among the models and checkpoints."""
    store = Store(workspace.store_dir)
    if store.path.exists():
        shards = store.query_published(
            "SELECT n_samples AS n, count(sample_id) AS found FROM shards LEFT JOIN samples USING (shard) "
            "GROUP BY shard, n_samples"
        )
        assert shards["n"].equals(shards["found"])
    for folder, last in (
        (workspace.models_dir, "icon_model.json"),
        (workspace.checkpoints_dir, "icon_checkpoint.json"),
    ):
        assert all((directory / last).is_file() for directory in folder.glob("[!.]*"))


def assert_equal(ours: Store, theirs: Store) -> None:
    for table, columns in EQUAL.items():
        rows, expected = (store.query(f"SELECT {columns} FROM {table} ORDER BY ALL") for store in (ours, theirs))
        assert rows.height
        assert rows.equals(expected), table


def assert_tidy(workspace: Workspace) -> None:
    """Nothing that a killed process had begun is left: no file, no run that seems to go on, no slot that is held."""
    paths = written(workspace.root, "")
    assert [path for path in paths if any(end in path for end in (".partial", ".old", ".work"))] == []
    with dg.DagsterInstance.from_config(str(workspace.dagster_home)) as instance:
        assert instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) == []
    assert held_slots(workspace) == 0


def held_slots(workspace: Workspace) -> int:
    """Of the pool that scoring, training and evaluation share."""
    with dg.DagsterInstance.from_config(str(workspace.dagster_home)) as instance:
        return instance.event_log_storage.get_concurrency_info("gpu").active_slot_count
