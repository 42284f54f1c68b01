"""Changing what is stored behind the store's back: in Parquet files in place, and in the logs of tables."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from icon_assets.core.store.tables import Store


def files_of(store: Store, table: str) -> list[Path]:
    return [Path(file) for file in store.files(table)]


def log_of(store: Store, table: str) -> list[Path]:
    """Entries of a table's log, oldest first."""
    return sorted((store.root / "tables" / table / "_delta_log").glob("*.json"))


def change_rows(store: Store, table: str, where: str = "true", **values: Any) -> None:
    """Give other values to the first row that fits, in its file, in place."""
    for path in files_of(store, table):
        with pq.ParquetFile(path) as file:
            rows = pl.DataFrame(file.read())
            schema = file.schema_arrow
        hit = rows.with_row_index("place").sql(f"SELECT place FROM self WHERE {where} ORDER BY place")
        if hit.height:
            here = pl.int_range(pl.len()) == hit["place"][0]
            changed = {
                name: pl.when(here).then(pl.lit(value)).otherwise(name).alias(name) for name, value in values.items()
            }
            pq.write_table(rows.with_columns(**changed).to_arrow().cast(schema), path)
            return
    raise AssertionError(f"{table}: no row where {where}")


def flip(path: Path, place: float = 0.5) -> None:
    """Flip the bits of some bytes."""
    content = bytearray(path.read_bytes())
    at = int(len(content) * place)
    content[at : at + 8] = bytes(255 - byte for byte in content[at : at + 8])
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove_table(store: Store, table: str) -> None:
    shutil.rmtree(store.root / "tables" / table)
