"""Runs SQL of users: in a thread that can be stopped, on a database that reads only this store's files, within limits.

There are three independent protections. `statements` accepts only statements that read. The database may open only the
live Parquet files and its own temporary directory, and its settings are locked. The kernel allows the thread to write
only in that directory (Linux). Only if both the first and the kernel's protection failed could a COPY reach the live
files."""

import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import psutil

from icon_assets.core.errors import IconError
from icon_assets.core.files import disk_errors
from icon_assets.core.store.landlock import write_only_below
from icon_assets.core.store.schema import literal, literals
from icon_assets.core.store.statements import reading
from icon_assets.settings import SqlSettings

if TYPE_CHECKING:
    import pyarrow as pa

    _Found = tuple[Sequence[tuple[str, str]], pa.Table]  # names and types of the columns in DuckDB, and the rows

_PREFIX = "icon-assets-sql-"
_STACK_BYTES = 64 << 20  # threads have small stacks on some systems, and the parser is recursive
_GRACE_SECONDS = 1.0  # binding can't be interrupted
_BATCH_ROWS = 50_000
# Types that polars can hold. Of the others, these have a JSON form, and the rest become texts as DuckDB writes them.
_PLAIN = {
    "boolean",
    "tinyint",
    "smallint",
    "integer",
    "bigint",
    "utinyint",
    "usmallint",
    "uinteger",
    "ubigint",
    "float",
    "double",
    "varchar",
    "decimal",
}
_STRUCTURED = {"hugeint", "uhugeint", "bignum", "list", "array", "struct", "tuple", "map", "union", "variant"}
_FEW_DIGITS = 4000  # Python refuses to read longer numbers


@dataclass(frozen=True)
class Bounds:
    """The limits of one query. None: half of the free memory, all threads of the processors, half of the free disk
    space."""

    seconds: float = 300
    memory: int | None = None  # bytes, for the query, and again for its result
    threads: int | None = None
    temp_space: int | None = None  # bytes

    @classmethod
    def of(cls, choice: SqlSettings, seconds: float | None = None) -> "Bounds":
        """The limits of the settings; `seconds` overrides their time limit."""
        memory, threads, space = (
            None if each == "auto" else int(each) for each in (choice.memory, choice.threads, choice.temp_space)
        )
        return cls(seconds or choice.timeout_seconds, memory, threads, space)

    def resolved(self, directory: Path) -> "Bounds":
        memory = self.memory or max(_free_memory() // 2, 64 << 20)
        space = shutil.disk_usage(directory).free // 2 if self.temp_space is None else self.temp_space
        return Bounds(self.seconds, memory, self.threads, space)


@dataclass(frozen=True)
class Published:
    """A DuckDB file of views, the store that it must belong to, and the folder that contains every file behind it."""

    database: Path
    root: Path
    tables: Path


class MadeElsewhere(Exception):
    """The published file names a place that is not its own, or none, or is damaged: publish it again."""


@dataclass(frozen=True)
class Answer:
    """The rows of a query. Values that polars or Python can't hold (far dates, unions, intervals) are text.
    `structured` columns contain JSON."""

    frame: pl.DataFrame
    structured: frozenset[str]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of plain values, lists and dicts, for JSON."""
        return [
            {name: _from_json(value) if name in self.structured else value for name, value in row.items()}
            for row in self.frame.iter_rows(named=True)
        ]


def ask(published: Published, text: str, bounds: Bounds, spill: Path) -> Answer:
    """The answer of the last statement of a user's text on a published file.

    `spill`: a directory for temporary files, the only place that is written to.

    Raises:
        IconError: the text does more than read, DuckDB refused it, or it reached a limit; the message says which.
        MadeElsewhere: the file belongs to a different place; nothing was read.
        KeyboardInterrupt: passed on after the query was stopped.
    """
    import pyarrow as pa  # noqa: F401  (what it starts must not be shut in with the query)

    bounds = bounds.resolved(spill)
    try:
        columns, table = _Query(lambda query: _answer(query, published, text, bounds, spill)).result(bounds.seconds)
    except TimeoutError as error:
        raise IconError(
            f"sql: stopped after {bounds.seconds:g} seconds; ask for less, or raise --timeout or sql.timeout_seconds"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise _bound_met(error, bounds) from error
    except duckdb.Error as error:
        if "not a valid DuckDB database file" in str(error):
            raise MadeElsewhere from error
        raise IconError(f"sql: {' '.join(str(error).split())[:400]}") from error
    return Answer(pl.DataFrame(table), frozenset(name for name, kind in columns if kind in _STRUCTURED))


def made_for(database: Path) -> Path | None:
    """The store that a published file was made for; None if it does not say so, or is damaged."""
    with duckdb.connect(config={"python_enable_replacements": False}) as con:
        try:
            con.execute(f"ATTACH {literal(str(database))} AS scores (READ_ONLY); USE scores")
            return _origin(con)[0]
        except (MadeElsewhere, duckdb.Error):
            return None


def _origin(con: duckdb.DuckDBPyConnection) -> tuple[Path, list[str]]:
    """The description in a published file: its store, and the Parquet files of its views."""
    try:
        roots = con.execute("SELECT root FROM delta.origin").fetchall()
        return Path(roots[0][0]), [row[0] for row in con.execute("SELECT file FROM delta.files").fetchall()]
    except duckdb.CatalogException as error:  # made by an earlier version
        raise MadeElsewhere from error


class _Query:
    """Work in a separate thread, with a connection that the main thread may interrupt."""

    def __init__(self, work: "Callable[[_Query], _Found]") -> None:
        self.connection: duckdb.DuckDBPyConnection | None = None
        self.stopped = False
        self._done = threading.Event()
        self._found: _Found | None = None
        self._error: BaseException | None = None
        self._start(work)

    def result(self, seconds: float) -> "_Found":
        try:
            if not self._done.wait(min(seconds, threading.TIMEOUT_MAX)):
                raise TimeoutError
        finally:
            self._stop()
        if self._error:
            raise self._error
        assert self._found is not None
        return self._found

    def _start(self, work: "Callable[[_Query], _Found]") -> None:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=self._run, args=(work,), name="sql", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _run(self, work: "Callable[[_Query], _Found]") -> None:
        try:
            self._found = work(self)
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is waited for)
            self._error = error
        finally:
            self._done.set()

    def _stop(self) -> None:
        self.stopped = True
        if self.connection and not self._done.is_set():
            self.connection.interrupt()
            self._done.wait(_GRACE_SECONDS)


def _answer(query: _Query, published: Published, text: str, bounds: Bounds, spill: Path) -> "_Found":
    write_only_below(spill)
    with _confined(published, bounds, spill) as con:
        query.connection = con
        if query.stopped:
            raise duckdb.InterruptException("stopped before it began")
        relation = [con.sql(statement) for statement in reading(con, text)][-1]  # only the last one is run
        columns = [(name, str(kind.id)) for name, kind in zip(relation.columns, relation.types, strict=True)]
        return columns, _table(relation.project(", ".join(_shown(name, kind) for name, kind in columns)), bounds)


@contextmanager
def _confined(published: Published, bounds: Bounds, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can open only the live files and `spill`."""
    config: dict[str, Any] = {
        "python_enable_replacements": False,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        "enable_external_file_cache": False,
        "temp_directory": str(spill),
        "memory_limit": f"{bounds.memory}B",
        **({"threads": bounds.threads} if bounds.threads else {}),
    }
    with duckdb.connect(config=config) as con:
        con.execute(f"ATTACH {literal(str(published.database))} AS scores (READ_ONLY); USE scores")
        con.execute(f"SET max_temp_directory_size = '{bounds.temp_space}B'")  # given above, it would have no effect
        root, files = _origin(con)
        if root != published.root:
            raise MadeElsewhere
        tables = published.tables.resolve()
        allowed = [file for file in files if Path(file).resolve().is_relative_to(tables)]
        con.execute(f"SET allowed_paths = [{literals(allowed)}]; SET allowed_directories = []")
        con.execute("SET enable_external_access = false; SET lock_configuration = true")
        yield con


def _table(relation: duckdb.DuckDBPyRelation, bounds: Bounds) -> "pa.Table":
    """All rows, if they fit. Rows outside of DuckDB do not count towards its own limit."""
    import pyarrow as pa

    reader = relation.to_arrow_reader(_BATCH_ROWS)
    batches = list[pa.RecordBatch]()
    size = 0
    for batch in reader:
        size += batch.nbytes
        if size > (bounds.memory or 0):
            raise IconError(
                f"sql: the result is larger than sql.memory ({_size(bounds.memory)}); ask for fewer rows, or raise it"
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def _shown(name: str, kind: str) -> str:
    column = '"' + name.replace('"', '""') + '"'
    if kind in _PLAIN:
        return column
    if kind in _STRUCTURED:
        return f"to_json({column})::VARCHAR AS {column}"
    if kind.startswith("timestamp with"):  # +00 is +00:00 in ISO 8601
        return rf"regexp_replace({column}::VARCHAR, '([+-]\d\d)$', '\1:00') AS {column}"
    return f"{column}::VARCHAR AS {column}"


def _from_json(text: str | None) -> Any:
    """NaN and infinities become texts, as `strict_json` writes them."""
    if text is None:
        return None
    try:
        return json.loads(text, parse_constant=str, parse_int=lambda n: int(n) if len(n) < _FEW_DIGITS else n)
    except RecursionError:
        return text


def _bound_met(error: duckdb.OutOfMemoryException, bounds: Bounds) -> IconError:
    if "max_temp_directory_size" in str(error):
        return IconError(
            f"sql: needs more temporary space than sql.temp_space ({_size(bounds.temp_space)}); ask for less, or raise "
            "it"
        )
    return IconError(f"sql: needs more memory than sql.memory ({_size(bounds.memory)}); ask for less, or raise it")


def _size(n_bytes: int | None) -> str:
    return f"{(n_bytes or 0) / 2**30:.2f} GiB"


def _free_memory() -> int:
    """Free memory of the machine, or of the container."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        return min(free, int((group / "memory.max").read_text()) - used)
    return free


# Temporary directories


@contextmanager
def spill_directory() -> Iterator[Path]:
    """A new directory for temporary files. Directories of killed processes are removed first.

    Raises:
        DiskRefused: there is no place for it.
    """
    with disk_errors("sql: temporary directory (TMPDIR)"):
        _sweep()
        path, held = _new_directory()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _new_directory() -> tuple[Path, int]:
    """Its path and a descriptor that holds a lock on it. A directory without a lock may be removed by anyone."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        with suppress(FileNotFoundError):
            held = _locked(path)
            if held is not None and path.is_dir():
                return path, held


def _sweep() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid():
                held = _locked(path)
                if held is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(held)


def _locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
