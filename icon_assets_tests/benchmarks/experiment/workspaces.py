"""Workspaces of experiments: materialized through the platform's own graph, and copied for a different selection."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.home import open_instance
from icon_assets.runner import run_stages, stages_of
from icon_assets.workspace import Workspace
from icon_assets_tests.benchmarks.experiment.layout import write_settings

# What a copy for a different fraction can share by hard link, because it is never written again.
_SHARED = shutil.ignore_patterns("dagster_home", "exports", "*.work")
_COPIED = "copied.json"


def copy(source: Path, target: Path, selection: dict[str, Any]) -> None:
    """A workspace of its own for another selection, with everything that was made for the first. Files are linked: no
    file of the store, of a model or of a checkpoint is ever written to again."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=os.link, ignore=_SHARED)
    values = yaml.safe_load((source / "settings.yaml").read_text("utf-8"))
    values["selection"] |= selection
    (partial / "settings.yaml").unlink()  # or the source's would change with it
    write_settings(partial, values)
    (partial / _COPIED).write_text(json.dumps({"at": datetime.now(UTC).isoformat()}), "utf-8")
    partial.rename(target)


def is_of_another(workspace: Workspace) -> bool:
    """Whether the results in a copy are still those that it began with: no leaderboard was made in it since."""
    path = workspace.root / _COPIED
    if not path.is_file():
        return False
    newer = Store(workspace.store_dir).query(
        "SELECT count(*) FROM ledger WHERE asset = 'leaderboard' AND created_at > $at::TIMESTAMPTZ",
        json.loads(path.read_text("utf-8")),
    )
    return not newer.item()


def materialize(workspace: Workspace, select: Sequence[str] = ()) -> None:
    """The assets of this name, or all."""
    assets = build_assets(workspace)
    with open_instance(workspace) as instance:
        for outcome in run_stages(assets, workspace, instance, stages_of(assets, select)):
            print(f"{workspace.root.name}: {outcome.name} {outcome.error or 'done'}", file=sys.stderr)
            if outcome.error:
                raise SystemExit(f"{outcome.name}: {outcome.error}")
