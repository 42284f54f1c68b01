"""What every table must contain, by the ledger and by the commits since its newest entry, and whether it does.

Each entry of the ledger holds the contents of everything that was written since the previous entry, and the last commit
that it covers. A commit describes what it wrote. If a process is killed between the commit and the entry, the next
entry includes that commit. Tables from before contents were recorded are accepted once as they are found."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icon_assets.core.errors import StoreDamaged
from icon_assets.core.files import new_file
from icon_assets.core.store.contents import (
    NOTHING,
    Contents,
    Group,
    added,
    as_json,
    contents_of_file,
    folders_of,
    from_json,
)
from icon_assets.core.store.delta import Commit, Snapshot
from icon_assets.core.store.schema import RECORDED_BY, schemas
from icon_assets.core.store.tables import Store

Where = Mapping[str, Collection[str]]  # for some columns, the values to check
_ATTEMPTS = 5


@dataclass(frozen=True)
class Known:
    """The record of a table in the ledger: its contents, up to this commit of the table with this id."""

    table_id: str
    version: int
    groups: Mapping[Group, Contents]


@dataclass(frozen=True)
class Difference:
    """Rows that differ from the record."""

    table: str
    group: Group
    recorded: Contents
    found: Contents

    @property
    def where(self) -> dict[str, str]:
        return dict(zip(RECORDED_BY.get(self.table, ()), self.group, strict=True))

    def __str__(self) -> str:
        place = " ".join([self.table, *(f"{name}={value}" for name, value in self.where.items())])
        if self.recorded.rows == self.found.rows:
            return f"{place}: {self.found.rows:,} rows, whose values were changed"
        return f"{place}: {self.found.rows:,} rows, {self.recorded.rows:,} recorded"


@dataclass
class _Read:
    """Entries of the ledger that this process has read already."""

    files: tuple[str, ...] = ()
    entries: int = 0
    newest: str = ""
    tables: dict[str, Known] = field(default_factory=dict)


_read: dict[Path, _Read] = {}
_looked_at: dict[tuple[Any, ...], dict[Group, Contents]] = {}  # by file and its state: files are never changed in place


def on_record(store: Store) -> Mapping[str, Known]:
    """The record of each table in the ledger.

    Raises:
        StoreDamaged: the ledger can't be read.
    """
    before = _read.get(store.root, _Read())
    files = store.files("ledger")
    if files and files == before.files:
        return before.tables
    query = """
        SELECT seq, event_id, summary->>'contents' AS contents FROM delta.events
        WHERE seq >= $from AND (seq = $from OR summary LIKE '%"contents":{%') ORDER BY seq
    """
    rows = store.query(query, {"from": before.entries}).rows()
    if before.entries and (not rows or rows[0][1] != before.newest):  # a different ledger than the one read before
        before = _Read()
        rows = store.query(query, {"from": 0}).rows()
    news = [row for row in rows if row[0] > before.entries]
    if not news:
        return before.tables
    tables = dict(before.tables)
    for _, _, contents in news:
        tables |= {table: _after(tables.get(table), told) for table, told in json.loads(contents or "{}").items()}
    _read[store.root] = _Read(files, news[-1][0], news[-1][1], tables)
    return tables


def _after(known: Known | None, told: Mapping[str, Any]) -> Known:
    groups = {**(known.groups if known else {}), **from_json(told["groups"])}
    return Known(told["id"], told["version"], groups)


def expected(store: Store, table: str, at: Snapshot) -> dict[Group, Contents] | None:
    """What the table must contain as of this snapshot; None where nothing is recorded yet. A group without a record has
    no rows."""
    known = on_record(store).get(table)
    groups = dict(known.groups) if known else {}
    first = 0
    if known and known.table_id == at.table_id:
        first = known.version + 1
    for commit in store.commits(table, first, at.version):
        if commit is None or (commit.written is None and not commit.keeps_rows):
            if known is None:
                return None
            continue  # not a commit of this code: it does not change the record
        _apply(commit, groups, table)
    return groups


def _apply(commit: Commit, groups: dict[Group, Contents], table: str) -> None:
    if commit.written is None:
        return
    if commit.replaced is not None:
        where = {name: (value,) for name, value in commit.replaced.items()}
        groups.update({group: NOTHING for group in groups if _is_in(group, table, where)})
    groups.update(added(groups, commit.written))


def _is_in(group: Group, table: str, where: Where) -> bool:
    columns = RECORDED_BY.get(table, ())
    return all(value in where[name] for name, value in zip(columns, group, strict=True) if name in where)


def news(store: Store, accepted: Collection[str] = ()) -> dict[str, Any]:
    """For the next entry of the ledger: the contents of everything written since the newest one, by table. A table
    without a record, or one to be accepted as it is, is read."""
    known = on_record(store)
    told = {table: _told(store, table, known.get(table), table in accepted) for table in schemas()}
    return {table: each for table, each in told.items() if each is not None}


def _told(store: Store, table: str, known: Known | None, accepted: bool) -> dict[str, Any] | None:
    before = known.groups if known else {}
    try:
        at = store.snapshot(table)
        if not accepted and ((known.table_id, known.version) == (at.table_id, at.version) if known else at.version < 0):
            return None
        groups = None if accepted else expected(store, table, at)
        if groups is None:
            groups = {**dict.fromkeys(before, NOTHING), **found(store, table, at)}
    except StoreDamaged:
        return None  # it can't be described now
    changed = {group: each for group, each in groups.items() if before.get(group, NOTHING) != each}
    return {"id": at.table_id, "version": at.version, "groups": as_json(changed)}


def unrecorded(store: Store) -> list[str]:
    """Tables with rows but without a record, which an earlier version wrote."""
    tables = list[str]()
    for table in schemas().keys() - on_record(store).keys():
        try:
            if expected(store, table, store.snapshot(table)) is None:
                tables.append(table)
        except StoreDamaged:
            continue
    return sorted(tables)


def found(
    store: Store,
    table: str,
    at: Snapshot,
    where: Where | None = None,
    trusted: "_Verified | None" = None,
    *,
    again: bool = False,
) -> dict[Group, Contents]:
    """The contents of a table's files, for rows with these values.

    Args:
        trusted: files that an earlier process read. They are not read again while their size and times are the same.
        again: read all files, also those that this process has read.

    Raises:
        StoreDamaged: a file is gone, or can't be read.
    """
    where = where or {}
    parts = [
        _of_file(store, table, Path(file), trusted, again) for file in at.files if _may_hold(store, table, file, where)
    ]
    return {group: each for group, each in added(*parts).items() if _is_in(group, table, where)}


def _may_hold(store: Store, table: str, file: str, where: Where) -> bool:
    folders = folders_of(store.within(table, file))
    return all(folders[name] in values for name, values in where.items() if name in folders)


def _of_file(store: Store, table: str, file: Path, trusted: "_Verified | None", again: bool) -> dict[Group, Contents]:
    import pyarrow as pa

    name = store.within(table, str(file))
    try:
        stat = file.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if trusted is not None and (contents := trusted.get(name, state)) is not None:
            return contents
        key = (str(file), *state)
        if again or key not in _looked_at:
            _looked_at[key] = contents_of_file(file, RECORDED_BY.get(table, ()), folders_of(name))
    except FileNotFoundError:
        raise StoreDamaged(table, name.as_posix(), "is gone") from None
    except (OSError, pa.ArrowException) as error:
        raise StoreDamaged(table, name.as_posix(), f"can't be read ({_one_line(error)})") from error
    if trusted is not None:
        trusted.put(name, state, _looked_at[key])
    return _looked_at[key]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160].replace(";", ",") or type(error).__name__


class _Verified:
    """Files of a table that were read before, kept between processes: `store/verified/<table>.json`."""

    def __init__(self, store: Store, table: str) -> None:
        self._path = store.root / "verified" / f"{table}.json"
        self._new = False
        try:
            self._files: dict[str, Any] = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            self._files = {}

    def get(self, name: Path, state: tuple[int, ...]) -> dict[Group, Contents] | None:
        had = self._files.get(name.as_posix())
        return from_json(had[1]) if had and tuple(had[0]) == state else None

    def put(self, name: Path, state: tuple[int, ...], contents: Mapping[Group, Contents]) -> None:
        self._files[name.as_posix()] = [list(state), as_json(contents)]
        self._new = True

    def save(self, live: Collection[str]) -> None:
        """Store what is new about these files."""
        if self._new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new_file(self._path, json.dumps({name: each for name, each in self._files.items() if name in live}))


def differences(
    store: Store, table: str, where: Where | None = None, *, most_rows: int | None = None, again: bool = False
) -> list[Difference]:
    """Where the table differs from its record; nothing where nothing is recorded yet.

    Args:
        where: only rows with these values.
        most_rows: with more rows than this, only files that changed since they were last read are read.
        again: read everything, even files that were read before.

    Raises:
        StoreDamaged: the table, or the ledger, can't be read.
    """
    for _ in range(_ATTEMPTS):
        at = store.snapshot(table)
        groups = expected(store, table, at)
        if groups is None:
            return []
        wanted = {group: each for group, each in groups.items() if _is_in(group, table, where or {})}
        many = most_rows is not None and sum(each.rows for each in wanted.values()) > most_rows
        trusted = _Verified(store, table) if many else None
        unlike = list(_compared(table, wanted, found(store, table, at, where, trusted, again=again)))
        if not unlike and trusted is not None:
            trusted.save({store.within(table, file).as_posix() for file in at.files})
        if not unlike or store.snapshot(table) == at:  # otherwise somebody was writing
            return unlike
    return []


def _compared(table: str, wanted: Mapping[Group, Contents], there: Mapping[Group, Contents]) -> Iterator[Difference]:
    for group in sorted(wanted.keys() | there.keys()):
        recorded = wanted.get(group, NOTHING)
        contents = there.get(group, NOTHING)
        if recorded != contents:
            yield Difference(table, group, recorded, contents)


def without_contexts(store: Store, score_key: str) -> list[str]:
    """Origins that have recorded pairs under this key, but no lengths of their samples."""
    pairs, contexts = (_current(store, table) for table in ("pair_scores", "contexts"))
    of_key = (group for group, each in pairs.items() if group[0] == score_key and each.rows)
    return sorted(group[1] for group in of_key if not contexts.get(group, NOTHING).rows)


def _current(store: Store, table: str) -> dict[Group, Contents]:
    return expected(store, table, store.snapshot(table)) or {}
