"""Digests of a table's rows. They depend on the values, not on the storage, so that merging files or updating a library
does not change them. They are sums: appended rows are added to the known digest, and order does not matter.

Of each row the first 16 bytes of the SHA-256 of its text are two integers; those of all rows are summed modulo 2**64.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import polars as pl

if TYPE_CHECKING:
    import pyarrow as pa

Group = tuple[str, ...]  # values of the columns that group a table's rows
_BATCH = 65_536
_NULL = "-"
_NAN = str(np.float64(np.nan).view(np.int64))


@dataclass(frozen=True)
class Contents:
    """The contents of some rows: their number, and their digest of 32 hex characters."""

    rows: int = 0
    digest: str = "0" * 32

    def __add__(self, other: "Contents") -> "Contents":
        return Contents(self.rows + other.rows, _joined(*(a + b for a, b in zip(self._sums, other._sums, strict=True))))

    @property
    def _sums(self) -> tuple[int, int]:
        return int(self.digest[:16], 16), int(self.digest[16:], 16)


def _joined(*sums: int) -> str:
    return "".join(f"{each % 2**64:016x}" for each in sums)


NOTHING = Contents()


def added(*parts: Mapping[Group, Contents]) -> dict[Group, Contents]:
    """The groups of all parts together."""
    total: dict[Group, Contents] = {}
    for part in parts:
        for group, contents in part.items():
            total[group] = total.get(group, NOTHING) + contents
    return total


def contents_of(rows: "pa.Table", by: Sequence[str]) -> dict[Group, Contents]:
    """The contents of the rows, for each combination of the text columns `by`."""
    return added(*(_of_batch(pl.DataFrame(batch), by, {}) for batch in rows.to_batches(_BATCH)))


def contents_of_file(path: Path, by: Sequence[str], folders: Mapping[str, str]) -> dict[Group, Contents]:
    """The same for one Parquet file. `folders`: columns that are in the names of its folders instead.

    Raises:
        OSError, pyarrow.ArrowInvalid: it can't be read.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=False) as file:
        return added(*(_of_batch(pl.DataFrame(batch), by, folders) for batch in file.iter_batches(_BATCH)))


def folders_of(path: Path) -> dict[str, str]:
    """Columns and values in the names of a file's folders below its table, such as `shard=a`."""
    parts = (part.partition("=") for part in path.parent.parts if "=" in part)
    return {name: unquote(value) for name, _, value in parts}


def _of_batch(rows: pl.DataFrame, by: Sequence[str], where: Mapping[str, str]) -> dict[Group, Contents]:
    """Columns are read by name, because their order in a file has no meaning."""
    rows = rows.with_columns(pl.lit(value).alias(name) for name, value in where.items() if name not in rows.columns)
    told = [_text(rows[name]) for name in sorted(set(rows.columns) - set(by))]
    hashes = _hashes(rows.select(pl.concat_str(told, separator="|")).to_series() if told else [""] * rows.height)
    if not by:
        return {(): _sum(hashes)}
    numbered = rows.select(pl.col(by).cast(pl.String)).with_row_index("place").group_by(by, maintain_order=True)
    return {
        tuple(str(value) for value in group): _sum(hashes[places["place"].to_numpy()]) for group, places in numbered
    }


def _sum(hashes: np.ndarray) -> Contents:
    return Contents(len(hashes), _joined(*(int(each) for each in hashes.sum(axis=0, dtype=np.uint64))))


def _hashes(lines: Iterable[str]) -> np.ndarray:
    """[rows, 2] unsigned integers."""
    digests = b"".join([hashlib.sha256(line.encode("utf-8", "surrogatepass")).digest()[:16] for line in lines])
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def _text(column: pl.Series) -> pl.Series:
    """Text that is equal exactly when the values are. Numbers become integers, because the text form of a fraction may
    change between library versions."""
    if column.dtype == pl.String:
        told = pl.select(pl.concat_str(column.str.len_bytes().cast(pl.String), pl.lit(":"), column)).to_series()
    elif column.dtype == pl.Float64:
        told = _bits(column)
    elif column.dtype == pl.List:
        told = pl.Series([None if each is None else _list_text(each) for each in column], dtype=pl.String)
    elif column.dtype == pl.Datetime:
        told = column.dt.epoch("us").cast(pl.String)
    else:
        told = column.cast(pl.Int64).cast(pl.String)
    return told.fill_null(_NULL).alias(column.name)


def _bits(column: pl.Series) -> pl.Series:
    bits = pl.Series(column.fill_null(0).to_numpy().view(np.int64)).cast(pl.String)
    nan = column.is_nan().fill_null(False)
    null = column.is_null()
    kept = pl.select(pl.when(nan).then(pl.lit(_NAN)).when(null).then(None).otherwise(bits))
    return kept.to_series()


def _list_text(values: pl.Series) -> str:
    return hashlib.sha256(values.cast(pl.Float32).to_numpy().astype("<f4").tobytes()).hexdigest()


def as_json(groups: Mapping[Group, Contents]) -> list[Any]:
    return [[list(group), each.rows, each.digest] for group, each in sorted(groups.items())]


def from_json(listed: Iterable[Any]) -> dict[Group, Contents]:
    return {tuple(group): Contents(rows, digest) for group, rows, digest in listed}
