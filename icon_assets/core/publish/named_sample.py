"""Which sample a person means: an id, the beginning of one, or a row of a source file."""

import re
from typing import Any

from icon_assets.core.errors import IconError
from icon_assets.core.store.tables import Store
from icon_assets.core.text import printable

LEAST_CHARS = 8
_ID_CHARS = 32
_SHOWN = 5
_AN_ID = re.compile(r"[0-9a-fA-F]+")
_A_ROW = re.compile(r"(?P<file>.+):(?P<row>[0-9]{1,18})")


def named_sample(store: Store, named: str, pool_folder: str = "pool") -> str:
    """The id of the sample that is meant.

    Args:
        named: an id, its first characters (at least 8), or FILE:ROW as in the view `samples`.
        pool_folder: may stand before FILE.

    Raises:
        IconError: no sample or several are meant, or the row is quarantined or a duplicate. One line says which.
    """
    if store.query("SELECT count(*) FROM shards").item() == 0:
        raise IconError("the pool has not been read; run `icon-assets run --select raw_pool` first")
    if place := _A_ROW.fullmatch(named):
        return _of_row(store, place["file"], int(place["row"]), pool_folder.rstrip("/"))
    if _AN_ID.fullmatch(named):
        return _of_id(store, named.lower())
    raise IconError(f"{named[:80]!r}: is neither an id nor FILE:ROW; such as 3f2a9c01, or a.jsonl:2")


def _of_id(store: Store, beginning: str) -> str:
    if len(beginning) < LEAST_CHARS:
        raise IconError(f"{beginning}: too short for an id; give at least its first {LEAST_CHARS} characters")
    pool = "SELECT DISTINCT sample_id FROM delta.pool WHERE starts_with(sample_id, $beginning) ORDER BY ALL"
    found = store.query(pool, {"beginning": beginning})["sample_id"].to_list()
    if len(found) == 1:
        return found[0]
    if found:
        more = ", ..." if len(found) > _SHOWN else ""
        raise IconError(f"{beginning}: {len(found)} samples begin with it: {', '.join(found[:_SHOWN])}{more}")
    gone = "SELECT file FROM removed_samples WHERE starts_with(sample_id, $beginning) ORDER BY ALL LIMIT 1"
    if files := store.query(gone, {"beginning": beginning})["file"].to_list():
        raise IconError(f"{beginning}: is no longer in the pool; it was in {files[0]}, which was deleted")
    what = "the id" if len(beginning) == _ID_CHARS else "an id that begins with it"
    raise IconError(f"{beginning[:_ID_CHARS]}: no sample of the pool has {what}")


def _of_row(store: Store, file: str, row: int, folder: str) -> str:
    known = store.query("SELECT file, n_samples + n_quarantined AS n_rows FROM shards ORDER BY file")
    files = dict(known.iter_rows())
    file = printable(file)  # as names are stored
    name = file if file in files else file.removeprefix(f"{folder}/")
    if name not in files:
        some = ", ".join(list(files)[:_SHOWN])
        raise IconError(f"{file}: no such file in the pool; it has {some}{', ...' if len(files) > _SHOWN else ''}")
    place: dict[str, Any] = {"file": name, "row": row}
    found = store.query('SELECT sample_id, is_duplicate FROM samples WHERE file = $file AND "row" = $row', place)
    if found.is_empty():
        raise _unusable(store, place, files[name])
    sample_id, is_duplicate = found.row(0)
    if not is_duplicate:
        return sample_id
    first = 'SELECT file, "row" FROM samples WHERE sample_id = $id AND NOT is_duplicate'
    of, at = store.query(first, {"id": sample_id}).row(0)
    raise IconError(f"{name}:{row}: is a duplicate of {of}:{at}, sample {sample_id}; see `icon-assets why {sample_id}`")


def _unusable(store: Store, place: dict[str, Any], n_rows: int) -> IconError:
    """Why a row of a known file is no sample."""
    said = 'SELECT "row", reason, detail FROM quarantine WHERE file = $file AND "row" IN (0, $row) ORDER BY "row" DESC'
    at = f"{place['file']}:{place['row']}"
    for row, reason, detail in store.query(said, place).iter_rows():
        what = "is quarantined" if row else "its whole file is quarantined"
        return IconError(f"{at}: {what}: {reason} ({detail}); mend it in the file and run again")
    return IconError(f"{at}: no such row; {n_rows:,} rows of the file were read, counted from 1")
