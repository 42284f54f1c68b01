"""Creating a workspace and its Dagster home."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import dagster as dg
from filelock import FileLock
from sqlalchemy.exc import DatabaseError

from icon_assets.core.errors import IconError
from icon_assets.core.files import disk_errors, new_directory, new_file
from icon_assets.history import history_error, load_instance
from icon_assets.workspace import Workspace

_SHIPPED = ("settings.yaml", "pool", "probes", "eval")
_READY = ".init.ready"  # the complete contents of a new workspace


def _shipped() -> Traversable:
    """The inputs of the package. In a source checkout they are the `data/` folder."""
    package = resources.files("icon_assets")
    installed = package / "shipped"
    return installed if installed.is_dir() else Path(str(package)).parent / "data"


def create_workspace(target: Path) -> Workspace:
    """Create a new workspace with the shipped sample data. After an interruption it is not a workspace yet, and the
    next call completes it.

    Raises:
        IconError: the directory already contains one of the files, is not a directory, or can't be written to.
    """
    with disk_errors(str(target)):
        try:
            target.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise IconError(f"{error.filename}: is a file, not a directory; choose a different one") from error
        with _sole_init(target):
            ready = target / _READY
            if not ready.exists():
                _refuse_taken(target, _SHIPPED)
                _stage(ready)
            _unpack(ready, target)
    return Workspace.load(target)


@contextmanager
def _sole_init(target: Path) -> Iterator[None]:
    """Wait for a parallel `init` here, and remove the remains of a killed one."""
    lock = target / ".init.lock"
    with FileLock(lock):
        for left in target.glob(f".{_READY}.*.partial"):
            shutil.rmtree(left)
        try:
            yield
        finally:
            lock.unlink()


def _refuse_taken(target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (target / name).exists():
            raise IconError(f"{target / name}: exists already; choose an empty directory")


def _stage(ready: Path) -> None:
    with new_directory(ready) as partial, resources.as_file(_shipped()) as source:
        for name in _SHIPPED:
            copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
            copy(source / name, partial / name)


def _unpack(ready: Path, target: Path) -> None:
    """Move everything to its place. The settings come last, because they make a directory a workspace."""
    left = [name for name in reversed(_SHIPPED) if (ready / name).exists()]
    _refuse_taken(target, left)
    for name in left:
        (ready / name).rename(target / name)
    ready.rmdir()


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
    """The Dagster instance of this workspace. Its recorded runs appear in the UI.

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
