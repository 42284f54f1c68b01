"""Several processes on one workspace: runs side by side, a reader through it all, and a run that is told to stop."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.e2e.conftest import questions, read_all_the_while
from icon_assets_tests.e2e.processes import start

PREPARE = ["raw_pool", "probe_set", "base_model", "probe_baseline"]


def test_runs_side_by_side_score_each_pair_once_and_a_reader_sees_whole_shards_only(
    make_busy: Callable[..., Workspace],
) -> None:
    """Four runs on a shard each, two on the same one, and one process that reads all the while."""
    names = [f"{letter}.jsonl" for letter in "abcde"]
    workspace = make_busy({name: questions(name[0], 6) for name in names})
    prepared = start(workspace.root, "run", "--select", *PREPARE)
    prepared.join(120)
    assert prepared.exitcode == 0
    store = Store(workspace.store_dir)
    files = [*names, "e.jsonl"]
    outs = [workspace.root / f"said{number}.txt" for number in range(len(files))]
    with read_all_the_while(
        store, "SELECT count(*) FROM current_scores WHERE control = 'none' GROUP BY file"
    ) as answers:
        runs = [
            start(workspace.root, "run", "--select", "sample_scores", "--shards", file, out=out)
            for file, out in zip(files, outs, strict=True)
        ]
        for run in runs:
            run.join(200)
    assert [(run.exitcode, out.read_text()[-300:]) for run, out in zip(runs, outs, strict=True) if run.exitcode] == []
    assert len(answers) > 20
    assert {row for answer in answers for row in answer} <= {(6,)}, "a shard's rows are all there, or none"
    counts = store.query("SELECT count(*), count(DISTINCT (sample_id, probe_id)) FROM pair_scores").row(0)
    assert counts == (30 * 4, 30 * 4)
    assert store.query("SELECT count(*) FROM current_scores WHERE control = 'none'").item() == 30


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_stops_with_one_line_and_keeps_its_work(
    make_busy: Callable[..., Workspace], which: signal.Signals
) -> None:
    workspace = make_busy({"many.jsonl": questions("many", 300), "next.jsonl": questions("next", 2)})
    said = workspace.root / "said.txt"
    store = Store(workspace.store_dir)
    run = start(workspace.root, "run", out=said)
    until = time.monotonic() + 120
    while store.query("SELECT count(*) FROM pair_scores").item() == 0 and time.monotonic() < until:
        time.sleep(0.05)
    assert run.pid is not None
    os.kill(run.pid, which)
    run.join(60)
    assert run.exitcode == 1, said.read_text()
    lines = said.read_text().splitlines()
    assert lines[-1] == "icon-assets: interrupted; finished work is kept, run again to continue"
    assert not any("selected_subset" in line or "Traceback" in line for line in lines), "it did not go on"
    assert 0 < store.query("SELECT count(*) FROM pair_scores").item() < 302 * 4
