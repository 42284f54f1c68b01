"""Repair of the store. Rows that differ from the record are removed, so that the next run makes them again. Unreadable
files are set aside below `store/set_aside/`. Nothing is deleted."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from icon_assets.core.errors import StoreDamaged
from icon_assets.core.store import inventory, ledger
from icon_assets.core.store.contents import Group, contents_of, contents_of_file, folders_of
from icon_assets.core.store.delta import LOG
from icon_assets.core.store.inventory import Difference
from icon_assets.core.store.ledger import STORE, Recipe
from icon_assets.core.store.schema import PARTITIONED_BY, RECORDED_BY, arrow_rows, schemas
from icon_assets.core.store.tables import Store

# Tables whose rows are added when they are needed: only removed rows are computed again.
_ADDED_TO = {
    "pair_scores",
    "contexts",
    "control_scores",
    "sample_features",
    "probe_features",
    "score_keys",
    "models",
    "selectors",
    "answers",
    "judgements",
}
_TRAINED = {"checkpoints", "checkpoint_samples", "loss_curves"}
_ONLY_TOLD = {"ledger", "scoring_costs"}  # a record of events: no asset makes it
_ALL_TOGETHER = {"contexts"}  # rows that are cheap to make again, but only as whole groups


def take_out(store: Store, unlike: Sequence[Difference]) -> None:
    """Remove rows that differ from the record from tables that their asset only appends to. Rows of files that match
    the description of their commit stay. Call it after the product is withdrawn in the ledger."""
    for each in unlike:
        if each.table in _ADDED_TO:
            _leave(store, each, _sound_rows(store, each))


def _leave(store: Store, unlike: Difference, sound: pl.DataFrame) -> None:
    """Keep only these rows of the group. Delta can't read the changed file, because its size differs from the log.
    Where a group is not a partition, all rows are therefore written again."""
    table = unlike.table
    by = RECORDED_BY.get(unlike.table, ())
    if set(by) <= set(PARTITIONED_BY.get(table, ())):
        store.replace(table, sound, **unlike.where)
        return
    with store.locked(f"{table}.append"):
        rows = pl.concat([_rows_of(Path(file), store.within(table, file), table) for file in store.files(table)])
        store.replace(table, pl.concat([_of_other_groups(rows, by, unlike.group), sound]))


def _sound_rows(store: Store, unlike: Difference) -> pl.DataFrame:
    table = unlike.table
    by = RECORDED_BY.get(unlike.table, ())
    empty = pl.DataFrame(schemas()[table].empty_table())
    if table in _ALL_TOGETHER:
        return empty
    at = store.snapshot(table)
    written = {}
    for commit in store.commits(table, 0, at.version):
        if commit and commit.written and unlike.group in commit.written:
            for name in commit.added:
                written[name] = commit.written[unlike.group]
    sound = [empty]
    for file in at.files:
        name = store.within(table, file)
        contents = contents_of_file(Path(file), by, folders_of(name)).get(unlike.group)
        if contents is not None and contents == written.get(name.as_posix()):
            sound.append(_rows_of(Path(file), name, table, unlike.group))
    return pl.concat(sound, how="vertical_relaxed")


def _rows_of(file: Path, name: Path, table: str, group: Group | None = None) -> pl.DataFrame:
    """Rows of one of a table's files, of one group or all, including the columns in the names of its folders."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, memory_map=False) as parquet:
        rows = pl.DataFrame(parquet.read())
    rows = rows.with_columns(pl.lit(value).alias(column) for column, value in folders_of(name).items())
    if group is not None:
        rows = _of_group(rows, RECORDED_BY.get(table, ()), group)
    return pl.DataFrame(arrow_rows(table, rows))


def forget_missing(store: Store, run_id: str) -> list[str]:
    """Remove missing files from the tables' logs, since nothing more of them can be lost. Their rows then differ from
    the record and are made again. The ledger is left to `icon-assets repair`."""
    gone = {table: _missing(store, table) for table in schemas() if table != "ledger"}
    lines = [f"{table}: {name} is gone" for table, names in gone.items() for name in names]
    if lines:
        ledger.record(store, Recipe(STORE), "", run_id, {"files_gone": lines})
        for table in [table for table, names in gone.items() if names]:
            _forget(store, table)
    return lines


def _missing(store: Store, table: str) -> list[str]:
    try:
        files = store.files(table)
    except StoreDamaged:
        return []
    return [store.within(table, file).as_posix() for file in files if not Path(file).exists()]


def _forget(store: Store, table: str) -> None:
    from deltalake import DeltaTable

    DeltaTable(str(store.root / "tables" / table)).repair()


@dataclass(frozen=True)
class Repair:
    """A fault of a table, and what `repair` does about it."""

    table: str
    wrong: str
    does: str

    def __str__(self) -> str:
        return f"{self.wrong}: {self.does}"


def repairs(store: Store) -> list[Repair]:
    """The parts of the store that can't be read or differ from the record, with what `repair` does about them. It
    changes nothing."""
    planned = [_planned(damage) for table in _ledger_first() for damage in store.damages(table)]
    damaged = {each.table for each in planned}
    if "ledger" in damaged:
        return planned
    unlike = (each for table in schemas() if table not in damaged for each in inventory.differences(store, table))
    return [*planned, *(_planned_for(store, each) for each in unlike)]


def _ledger_first() -> list[str]:
    """The ledger decides which parts of the other tables are valid."""
    return sorted(schemas(), key=lambda table: table != "ledger")


def _planned(damage: StoreDamaged) -> Repair:
    if damage.part == LOG:
        does = (
            "set aside the damaged part of the log, or the whole table if necessary, and restore the rows that are as "
            "recorded"
        )
    else:
        does = "remove it from the table's log" if damage.why == "is gone" else "set it aside"
    lost = (
        "products that only its entries named are made again"
        if damage.table == "ledger"
        else "the next run makes its rows again"
    )
    return Repair(damage.table, f"{damage.table}: {damage.part} {damage.why}", f"{does}; {lost}")


def _planned_for(store: Store, unlike: Difference) -> Repair:
    if _lost_rows(store, unlike) is not None:
        does = "restore its rows, which are in files that the table's log has lost"
    elif unlike.table in _ONLY_TOLD:
        does = "accept the rows as they are, because no asset makes them"
    elif unlike.table in _TRAINED:
        does = "nothing; delete the checkpoint's directory and run again to train it again"
    else:
        does = "nothing; the next run that needs it makes it again"
    return Repair(unlike.table, str(unlike), does)


def repair(store: Store) -> Iterator[str]:
    """Set aside unreadable files, restore rows that the log has lost, and report each step in one line."""
    place = store.root / "set_aside" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    for table in _ledger_first():
        yield from _repair_files(store, table, place)
    for table in schemas():
        yield from _put_back(store, table)
    store.publish()


def _repair_files(store: Store, table: str, place: Path) -> Iterator[str]:
    damages = list(store.damages(table))
    if any(damage.part == LOG for damage in damages):
        yield from _repair_log(store, table, place)
        damages = list(store.damages(table))
    for damage in damages:
        yield _set_aside(store, table, damage, place)
    if damages:
        _forget(store, table)


def _put_back(store: Store, table: str) -> Iterator[str]:
    for unlike in inventory.differences(store, table):
        rows = _lost_rows(store, unlike)
        if rows is not None:
            ledger.record(store, Recipe(ledger.STORE), "", "repair", {"put_back": str(unlike)})
            store.replace(table, rows, **unlike.where)
            yield f"{unlike}: restored"
        elif table in _ONLY_TOLD:
            ledger.record(store, Recipe(ledger.STORE), "", "repair", {"accepted": str(unlike)}, accepted=[table])
            yield f"{unlike}: accepted as it is"


def _lost_rows(store: Store, unlike: Difference) -> pl.DataFrame | None:
    """The recorded rows that are still in files of the table, whether its log names these files or not."""
    table = unlike.table
    by = RECORDED_BY.get(unlike.table, ())
    rows = _readable(table, store.root / "tables" / table, unlike.group)
    for candidate in (rows, rows.unique(maintain_order=True)):
        if contents_of(arrow_rows(table, candidate), by).get(unlike.group) == unlike.recorded:
            return candidate
    return None


def _set_aside(store: Store, table: str, damage: StoreDamaged, place: Path) -> str:
    lost = _rows_in_log(store, table, damage.part)
    of = f" ({lost:,} rows)" if lost is not None else ""
    if (store.root / "tables" / table / damage.part).exists():
        _move(store.root / "tables" / table / damage.part, place / table / damage.part)
        return f"{table}: {damage.part}{of} set aside in {place.relative_to(store.root.parent)}"
    return f"{table}: {damage.part}{of} removed from the log"


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)


def _rows_in_log(store: Store, table: str, name: str) -> int | None:
    """Rows that a file of a table has according to the log."""
    from deltalake import DeltaTable

    added = pl.DataFrame(DeltaTable(str(store.root / "tables" / table)).get_add_actions(flatten=True))
    found = added.filter(pl.col("path") == name)
    return found["num_records"].item() if found.height == 1 and "num_records" in found.columns else None


def _repair_log(store: Store, table: str, place: Path) -> Iterator[str]:
    """Without the unreadable parts of its log, the table may open again. Otherwise its rows are taken from its
    files."""
    folder = store.root / "tables" / table
    for part in _damaged_parts(folder / "_delta_log"):
        _move(part, place / table / "_delta_log" / part.name)
        yield f"{table}: _delta_log/{part.name} set aside in {place.relative_to(store.root.parent)}"
    if _opens(store, table):
        return
    _move(folder, place / table / "table")
    yield (
        f"{table}: its log can't be read without that part: the whole table set aside in "
        f"{place.relative_to(store.root.parent)}"
    )
    kept, lost = _take_back(store, table, place / table / "table")
    yield f"{table}: {kept:,} rows taken back" + (f", {lost:,} recorded rows are lost" if lost else ", none lost")


def _opens(store: Store, table: str) -> bool:
    try:
        return bool(store.snapshot(table).table_id)
    except StoreDamaged:
        return False


def _damaged_parts(log: Path) -> list[Path]:
    """Commits that are no JSON, with everything after the first of them; checkpoints where all commits are there, which
    say the same."""
    commits = sorted(log.glob("[0-9]*.json"))
    broken = next((i for i, commit in enumerate(commits) if not _is_commit(commit)), len(commits))
    whole = bool(commits) and int(commits[0].stem) == 0 and broken > 0
    checkpoints = [*log.glob("*.checkpoint*.parquet"), *log.glob("_last_checkpoint")] if whole else []
    strangers = [path for path in log.iterdir() if path.is_file() and path not in commits] if log.is_dir() else []
    return sorted({*commits[broken:], *checkpoints, *(path for path in strangers if "checkpoint" not in path.name)})


def _is_commit(path: Path) -> bool:
    try:
        return (
            all(isinstance(json.loads(line), dict) for line in path.read_text("utf-8").split("\n") if line)
            and path.stat().st_size > 0
        )
    except (OSError, ValueError):
        return False


def _take_back(store: Store, table: str, folder: Path) -> tuple[int, int]:
    """Rows of the table's files, wherever they are as recorded; of the ledger all that can be read. Returns rows kept
    and lost."""
    rows = _readable(table, folder)
    if table == "ledger":
        kept = rows.unique("event_id", maintain_order=True)
        store.replace(table, kept)
        return kept.height, 0
    known = inventory.on_record(store).get(table)
    kept = 0
    recorded = sum(each.rows for each in known.groups.values()) if known else rows.height
    by = RECORDED_BY.get(table, ())
    for group, contents in (known.groups if known else {}).items():
        own = _of_group(rows, by, group).unique(maintain_order=True)
        if contents.rows and contents_of(arrow_rows(table, own), by).get(group) == contents:
            store.replace(table, own, **dict(zip(by, group, strict=True)))
            kept += own.height
    return kept, recorded - kept


def _of_other_groups(rows: pl.DataFrame, by: Sequence[str], group: Group) -> pl.DataFrame:
    return rows.filter(pl.any_horizontal([pl.lit(False), *(pl.col(c) != v for c, v in zip(by, group, strict=True))]))


def _of_group(rows: pl.DataFrame, by: Sequence[str], group: Group) -> pl.DataFrame:
    return rows.filter(pl.all_horizontal([pl.lit(True), *(pl.col(c) == v for c, v in zip(by, group, strict=True))]))


def _readable(table: str, folder: Path, group: Group | None = None) -> pl.DataFrame:
    """Rows of every file that can be read, whether the table still has it or not."""
    import pyarrow as pa

    parts = [pl.DataFrame(schemas()[table].empty_table())]
    for file in sorted(folder.rglob("*.parquet")):
        name = file.relative_to(folder)
        if name.parts[0] != "_delta_log":
            try:
                parts.append(_rows_of(file, name, table, group))
            except (OSError, pa.ArrowException):
                continue
    return pl.concat(parts, how="vertical_relaxed")
