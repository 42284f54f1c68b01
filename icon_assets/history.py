"""Dagster's own history of a workspace. It is created under a lock, and faults in it or its settings are reported in
one line."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._config import EvaluationError, process_config, resolve_to_config_type, validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sql import get_alembic_config
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_shared.check import CheckError
from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from icon_assets.core.errors import DiskRefused, IconError
from icon_assets.core.files import publish_directory, sole_writer

_FOLDERS = ("history", "schedules")
# SQLite file, the tables that Dagster expects in it, the module whose siblings are its migrations.
_DATABASES = (
    ("history/runs.db", RunStorageSqlMetadata, sqlite_run_storage),
    ("history/runs/index.db", SqlEventLogStorageMetadata, sqlite_event_log),
    ("schedules/schedules.db", ScheduleStorageSqlMetadata, sqlite_schedule_storage),
)
# SQLite's messages for a file that is no longer a database of Dagster, as opposed to disk errors.
_BROKEN = ("not a database", "malformed", "no such table", "no such column")


def load_instance(home: Path) -> dg.DagsterInstance:
    """Dagster's instance of the home `home`. Its history is created first if there is none.

    One process at a time: two processes that initialise the same SQLite files can leave a history that can't be opened.

    Raises:
        IconError: `dagster.yaml` can't be used, or the history is broken.
        DiskRefused: the disk is full or read-only.
    """
    reference = _reference(home)
    base = _sqlite_base(reference)
    with sole_writer((base or home) / "history"):
        if base is not None:
            _check_history(base)
            _make_history(base)
        with _faults_of(home / "dagster.yaml"):
            return dg.DagsterInstance.from_ref(reference)


def history_error(home: Path, error: DatabaseError) -> IconError:
    """One line for an error of SQLAlchemy while the history was read or written."""
    said = str(error.orig or error)
    if any(words in said for words in _BROKEN):
        return _broken(home / "history", said, home)
    if "locked" in said:
        return IconError(
            f"{home}: Dagster's history: another process keeps it locked; find that process, then run again"
        )
    return DiskRefused(f"{home}: Dagster's history", error.orig or error)


def _check_history(base: Path) -> None:
    for folder in (base / name for name in _FOLDERS):
        if folder.exists() and not folder.is_dir():
            raise _broken(folder, "not a folder", base)
    for name, metadata, module in _DATABASES:
        path = base / name
        if path.exists() and (fault := _fault(path, set(metadata.tables), module)):
            raise _broken(path, fault, base)


def _fault(path: Path, tables: set[str], module: Any) -> str | None:
    """Why Dagster could not work with this file; None if it can, or will create the tables itself."""
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return _fault_of_tables(connection, tables, module)
    except OperationalError:
        raise  # a disk error or a held lock is not a fault of the history
    except DatabaseError as error:
        return str(error.orig)


def _fault_of_tables(connection: Connection, tables: set[str], module: Any) -> str | None:
    from alembic.script import ScriptDirectory

    found = set(inspect(connection).get_table_names())
    versions = (
        connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        if "alembic_version" in found
        else []
    )
    if len(versions) > 1:
        return f"{len(versions)} versions in the table alembic_version"
    newest = ScriptDirectory.from_config(get_alembic_config(module.__file__)).get_current_head()
    missing = sorted(tables - found) if versions == [newest] else []
    return f"no table {missing[0]}" if missing else None


def _broken(path: Path, fault: str, base: Path) -> IconError:
    """Both folders must be moved, because cursors in one refer to events of the other."""
    return IconError(
        f"{path}: Dagster's history is broken ({fault}); stop the processes that use it, move "
        f"{' and '.join(str(base / name) for name in _FOLDERS)} "
        "away and run again: new ones are created; results and lineage are in the store and are not lost"
    )


def _make_history(base: Path) -> None:
    """Create missing folders beside their place, so that a crash leaves each one complete or absent."""
    missing = [name for name in _FOLDERS if not (base / name).exists()]
    if not missing:
        return
    partial = base / f".history.{uuid.uuid4().hex[:8]}.partial"
    try:
        DagsterSqliteStorage(str(partial)).dispose()
        for name in missing:
            publish_directory(partial / name, base / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """One line with file and key for any fault in Dagster's settings."""
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _wrong(path, f"not valid YAML ({_one_line(error)})") from error
    except dg.DagsterInvalidConfigError as error:
        raise _wrong(path, _first_fault(error)) from error
    except CheckError as error:
        raise _wrong(path, _one_line(error)) from error


def _wrong(path: Path, fault: str) -> IconError:
    return IconError(f"{path}: {fault}; correct it, or move the file away: the next command writes the default one")


def _reference(home: Path) -> InstanceRef:
    path = home / "dagster.yaml"
    with _faults_of(path):
        values = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(values, dict | None):
            raise _wrong(path, f"must hold keys such as `run_retries:`, not {type(values).__name__}")
        _check_sections(values or {})
        reference = InstanceRef.from_dir(str(home))
        for key, data in _classes(reference):
            _check_class(key, data)
    return reference


def _check_sections(values: dict[Any, Any]) -> None:
    """Check before Dagster's own reader, which assumes that some sections are mappings."""
    result = validate_config(dagster_instance_config_schema(), values)
    if "instance_class" not in values and not result.success:
        raise dg.DagsterInvalidConfigError("dagster.yaml", result.errors, values)


def _classes(reference: InstanceRef) -> Iterator[tuple[str, ConfigurableClassData]]:
    """Key and class of every part; `storage` before the three that Dagster derives from it."""
    for name, value in sorted(reference._asdict().items(), key=lambda each: each[0] != "storage_data"):
        if isinstance(value, ConfigurableClassData):
            yield name.removesuffix("_data"), value


def _check_class(key: str, data: ConfigurableClassData) -> None:
    """Dagster loads most classes on first use, and a misspelt one would fail in the middle of a run."""
    try:
        kind: Any = getattr(import_module(data.module_name), data.class_name)
    except (ImportError, AttributeError) as error:
        raise CheckError(f"{key}: no class {data.module_name}.{data.class_name} ({error})") from error
    if not (isinstance(kind, type) and issubclass(kind, ConfigurableClass)):
        raise CheckError(f"{key}: {data.module_name}.{data.class_name} is none of Dagster's configurable classes")
    result = process_config(resolve_to_config_type(kind.config_type()), data.config_dict)
    if result.errors:
        raise CheckError(f"{key}.config: {_fault_of_key(result.errors[0])}")


def _first_fault(error: dg.DagsterInvalidConfigError) -> str:
    return _fault_of_key(error.errors[0]) if error.errors else _one_line(error)


def _fault_of_key(fault: EvaluationError) -> str:
    """Key and reason, without Dagster's list of everything that it would have accepted."""
    key = ".".join(str(getattr(entry, "field_name", "?")) for entry in fault.stack.entries)
    message = _one_line(fault.message.split(" Expected: ")[0].split("Stack Trace")[0])
    return f"{key}: {message}" if key else message


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _sqlite_base(reference: InstanceRef) -> Path | None:
    """The folder of Dagster's SQLite files; None if the history is elsewhere."""
    data = reference.storage_data
    if data is None or data.class_name != DagsterSqliteStorage.__name__:
        return None
    base = data.config_dict["base_dir"]
    return Path(os.environ.get(base["env"], "") if isinstance(base, dict) else base)
