"""The data files of an export, in each format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

from icon_assets.core.encoding.prompts import messages_before_response, transcript
from icon_assets.core.inputs.sample import sample_of

if TYPE_CHECKING:
    import pyarrow as pa


Format = Literal["alpaca", "messages", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
SHARD_BYTES = 256 << 20  # a data file that has grown beyond this is followed by one more part
BATCH_ROWS = 1000


@dataclass(frozen=True)
class Exported:
    """The written export. `flattened`: chats whose earlier turns became part of the instruction."""

    directory: Path
    arm: str
    format: Format
    digest: str
    samples: int
    flattened: int
    files: Sequence[str]


def _alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    sample = sample_of(row)
    return {"instruction": transcript(sample), "input": sample.input, "output": sample.response}


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    sample = sample_of(row)
    answer = {"role": "assistant", "content": sample.response}
    return {"messages": [*messages_before_response(sample), answer]}


def _everything(row: Mapping[str, Any]) -> dict[str, Any]:
    file, line = row["line"].values() if isinstance(row["line"], dict) else row["line"]
    return {
        "sample_id": row["sample_id"],
        "rank": row["rank"],
        "score": row["score"],
        "instruction": row["instruction"],
        "input": row["input"],
        "output": row["response"],
        **_messages(row),
        "file": file,
        "row": line,
    }


ROWS = {"alpaca": _alpaca, "messages": _messages, "parquet": _everything}
_TURNS = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
# Column types in the Hugging Face hub's notation.
FEATURES: Mapping[str, list[dict[str, Any]]] = {
    "alpaca": [{"name": name, "dtype": "string"} for name in ("instruction", "input", "output")],
    "messages": [{"name": "messages", "list": _TURNS}],
    "parquet": [
        {"name": "sample_id", "dtype": "string"},
        {"name": "rank", "dtype": "int64"},
        {"name": "score", "dtype": "float64"},
        *({"name": name, "dtype": "string"} for name in ("instruction", "input", "output")),
        {"name": "messages", "list": _TURNS},
        {"name": "file", "dtype": "string"},
        {"name": "row", "dtype": "int64"},
    ],
}


def _arrow_schema() -> "pa.Schema":
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    turns = pa.list_(pa.struct([(turn["name"], types[turn["dtype"]]) for turn in _TURNS]))
    return pa.schema([(column["name"], types.get(column.get("dtype", ""), turns)) for column in FEATURES["parquet"]])


class DataFiles:
    """The data files: `train.jsonl` or `train.parquet`, or several in `train/` when one would be too large."""

    def __init__(self, directory: Path, form: Format, limit: int) -> None:
        self.form: Format = form
        self._directory = directory
        self._limit = limit
        self._suffix = "parquet" if form == "parquet" else "jsonl"
        self._paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._rows: list[dict[str, Any]] = []

    @property
    def names(self) -> list[str]:
        return [path.relative_to(self._directory).as_posix() for path in self._paths]

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._end_part()
        if len(self._paths) == 1:
            self._paths = [self._paths[0].rename(self._directory / f"train.{self._suffix}")]
            (self._directory / "train").rmdir()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._file is None:
            self._begin_part()
        assert self._file is not None
        self._write(self._rows)
        self._rows = []
        if self._file.tell() >= self._limit:
            self._end_part()

    def _begin_part(self) -> None:
        path = self._directory / "train" / f"train-{len(self._paths):05}.{self._suffix}"
        path.parent.mkdir(exist_ok=True)
        self._paths.append(path)
        self._file = path.open("wb")
        if self.form == "parquet":
            from pyarrow import parquet

            self._parquet = parquet.ParquetWriter(self._file, _arrow_schema(), compression="zstd")

    def _write(self, rows: list[dict[str, Any]]) -> None:
        assert self._file is not None
        if self.form == "parquet":
            import pyarrow as pa

            self._parquet.write_table(pa.Table.from_pylist(rows, _arrow_schema()))
        else:
            self._file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n".encode() for row in rows)

    def _end_part(self) -> None:
        if self._file is None:
            return
        if self.form == "parquet":
            self._parquet.close()
        self._file.close()
        self._file = None
