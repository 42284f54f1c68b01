"""Disks that get full while a stage is at work, or can't be written to: one line says so, and nothing is lost by it."""

import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.e2e.disks import Disk, Refused
from icon_assets_tests.e2e.processes import start
from icon_assets_tests.e2e.test_kills import assert_equal, assert_tidy, assert_whole, finish, written

# What is run, which folder is a disk of its own, how often it gets full, after how many new files at most (0: it is
# full from the start), and which ones count.
STAGES = {
    "ingest": (["raw_pool", "probe_set"], "store", 2, 6, "tables"),
    "model": (["base_model"], "models", 1, 0, ""),
    "scoring": (["base_model", "probe_baseline", "sample_scores"], "store", 2, 15, "tables"),
    "publishing": (["selected_subset"], "store", 1, 1, ".scores"),
    "training": (["checkpoint"], "checkpoints", 2, 14, ""),
    "evaluation": (["base_eval", "eval_results", "leaderboard"], "store", 2, 4, "tables"),
    "history": (["leaderboard"], "dagster_home", 1, 2, ""),
}
MEND = "check free space and permissions, then run again: finished work is kept"


def test_after_full_and_read_only_disks_everything_is_as_in_an_undisturbed_run(
    make_busy: Callable[..., Workspace], undisturbed: Callable[[], Workspace]
) -> None:
    workspace = make_busy()
    draw = random.Random(5)
    for select, part, times, most, counted in STAGES.values():
        with small_disk(workspace.root / part) as disk:
            for _ in range(times):
                assert_one_line(
                    workspace, part, *filled_at_work(workspace, disk, select, counted, draw.randint(min(1, most), most))
                )
                assert_seen_whole(workspace, disk)
            assert_one_line(workspace, part, *read_only(workspace, disk, select))
            assert_seen_whole(workspace, disk)
        finish(workspace, "--select", *select)
    finish(workspace)
    assert_equal(Store(workspace.store_dir), Store(undisturbed().store_dir))
    assert_tidy(workspace)


def small_disk(folder: Path) -> Disk:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Disk(folder, 32)
    except Refused as refusal:
        pytest.skip(f"no disk of its own can be had: {refusal}")


def filled_at_work(
    workspace: Workspace, disk: Disk, select: list[str], counted: str, after: int
) -> tuple[int | None, str]:
    """Fill the disk once a run has written so many files, and whatever becomes free again; exit code and what it
    said."""
    before = written(disk.seen, counted)
    run = started(workspace, disk, select)
    while run.is_alive() and len(written(disk.seen, counted) - before) < after:
        time.sleep(0.002)
    assert run.is_alive()
    while run.is_alive():
        disk.fill()
        time.sleep(0.005)
    disk.empty()
    return ended(workspace, run)


def read_only(workspace: Workspace, disk: Disk, select: list[str]) -> tuple[int | None, str]:
    with disk.read_only():
        return ended(workspace, started(workspace, disk, select))


def started(workspace: Workspace, disk: Disk, select: list[str]) -> BaseProcess:
    return start(workspace.root, "run", "--select", *select, out=workspace.root / "said.txt", disk=disk.pid)


def ended(workspace: Workspace, run: BaseProcess) -> tuple[int | None, str]:
    run.join(120)
    return run.exitcode, (workspace.root / "said.txt").read_text()


def assert_one_line(workspace: Workspace, part: str, exit_code: int | None, said: str) -> None:
    assert exit_code == 1, said
    lines = said.splitlines()
    assert [line for line in lines if line.startswith(("icon-assets:", "✗"))] == lines[-1:], said
    assert lines[-1].startswith(f"icon-assets: {'store' if part == 'store' else workspace.root / part}")
    assert lines[-1].count("could not be written") == 1
    assert lines[-1].endswith(MEND)
    assert "Traceback" not in said


def assert_seen_whole(workspace: Workspace, disk: Disk) -> None:
    disk.shown()
    assert_whole(workspace)
