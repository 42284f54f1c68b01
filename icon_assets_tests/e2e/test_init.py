"""kill -9 while a workspace is laid out: it is none yet, and the next `init` finishes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icon_assets.core.errors import IconError
from icon_assets.home import create_workspace
from icon_assets.workspace import Workspace

ROOT = Path(__file__).parents[2]
NAMES = {"settings.yaml", "pool", "probes", "eval"}


def laid_out(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("[!.]*") if path.is_file()}


# In a process that has one thread, and all that `init` needs: a fork of it costs milliseconds.
EVERYWHERE = """
import sys
from functools import partial
from pathlib import Path
from icon_assets.home import create_workspace
from icon_assets_tests.e2e.faults import count_changes, die_at_change, forked

log, folder = map(Path, sys.argv[1:])
whole = folder / "whole"
assert forked(partial(create_workspace, whole), partial(count_changes, str(log), str(whole))) == 0
for number, change in enumerate(log.read_text().splitlines()):
    root = folder / f"killed{number}"
    assert forked(partial(create_workspace, root), partial(die_at_change, number, str(root))) == -9, change
"""


def test_wherever_init_is_killed_there_is_no_half_workspace_and_the_next_init_finishes_it(tmp_path: Path) -> None:
    log = tmp_path / "changes.txt"
    folder = tmp_path / "workspaces"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", EVERYWHERE, str(log), str(folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    expected = laid_out(folder / "whole")
    changes = log.read_text().splitlines()
    assert {path.split("/")[0] for path in expected} == NAMES
    assert sum(change.startswith("os.rename") for change in changes) == 1 + len(NAMES)
    roots = list(folder.glob("killed*"))
    assert len(roots) + 1 >= len(changes) > 20, "the first kill comes before the directory itself"
    for root in roots:
        if not (root / "settings.yaml").exists():
            with pytest.raises(IconError, match="create a workspace with `icon-assets init"):
                Workspace.load(root)
            create_workspace(root)
        assert laid_out(root) == expected, "also where it was finished but for its last steps"


def test_a_directory_with_other_files_becomes_a_workspace_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    create_workspace(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {"notes.txt"}
    with pytest.raises(IconError, match="exists already"):
        create_workspace(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == NAMES | {"notes.txt"}


def test_what_somebody_put_there_after_a_kill_is_not_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    (root / ".init.ready" / "pool").mkdir(parents=True)
    (root / "pool").mkdir()
    (root / "pool" / "mine.jsonl").write_text("{}\n")
    with pytest.raises(IconError, match=r"pool: exists already; choose an empty directory"):
        create_workspace(root)
    assert (root / "pool" / "mine.jsonl").read_text() == "{}\n"


def test_a_place_that_can_hold_no_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(IconError, match="is a file, not a directory; choose a different one"):
            create_workspace(target)
    if os.geteuid():
        tmp_path.chmod(0o555)
        with pytest.raises(IconError, match="could not be written"):
            create_workspace(tmp_path / "new")
