"""Laying out a workspace and its Dagster home."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import DatabaseError

from icon_assets.core.errors import IconError
from icon_assets.core.files import disk_errors, new_file
from icon_assets.history import history_error, load_instance
from icon_assets.settings import Workspace

_SHIPPED = ("settings.yaml", "pool", "probes", "eval")


def _shipped() -> Traversable:
    """The inputs that come with the package; in a source checkout they are the `data/` folder itself."""
    package = resources.files("icon_assets")
    installed = package / "shipped"
    return installed if installed.is_dir() else Path(str(package)).parent / "data"


def create_workspace(target: Path) -> Workspace:
    """Lay out a new workspace with the shipped sample data.

    Raises:
        IconError: the directory already holds one of the files.
    """
    for name in _SHIPPED:
        if (target / name).exists():
            raise IconError(f"{target / name}: exists already; choose an empty directory")
    target.mkdir(parents=True, exist_ok=True)
    with resources.as_file(_shipped()) as source:
        for name in _SHIPPED:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name)
            else:
                shutil.copyfile(source / name, target / name)
    return Workspace.load(target)


def dagster_home(workspace: Workspace) -> Path:
    """The Dagster home to use: `DAGSTER_HOME` if set, else the workspace's own, written on first use."""
    home = Path(os.environ.get("DAGSTER_HOME") or workspace.dagster_home).resolve()
    if not (home / "dagster.yaml").exists():
        home.mkdir(parents=True, exist_ok=True)
        new_file(home / "dagster.yaml", (resources.files("icon_assets") / "dagster.yaml").read_text("utf-8"))
    os.environ["DAGSTER_HOME"] = str(home)
    return home


@contextmanager
def open_instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of this workspace; runs recorded in it appear in the UI.

    Raises:
        IconError: its `dagster.yaml` can't be used, or its history is broken.
        DiskRefused: its SQLite files can't be written, now or later.
    """
    try:
        with (
            disk_errors(f"{workspace.dagster_home}: Dagster's history"),
            load_instance(dagster_home(workspace)) as instance,
        ):
            yield instance
    except DatabaseError as error:
        raise history_error(workspace.dagster_home, error) from error
