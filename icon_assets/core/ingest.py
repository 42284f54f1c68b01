"""From source files to rows: finding the files of a pool, reading each format, and saying why a row can't be used."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from icon_assets.core.digests import digest, file_digest, lines_digest
from icon_assets.core.errors import IconError
from icon_assets.core.files import confined
from icon_assets.core.samples import Rejected, Sample, parse_row

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
_EXCERPT_CHARS = 200


@dataclass(frozen=True)
class SourceFile:
    """A file of the pool: its partition key, its path below the folder, and where it really lies."""

    shard: str
    file: str
    path: Path


@dataclass(frozen=True)
class Located:
    """A usable sample and where it stands; `row` counts from 1."""

    row: int
    sample: Sample
    fields: dict[str, Any]  # the row's other fields

    @property
    def metadata(self) -> str | None:
        """The row's other fields as JSON text, or None."""
        return _as_json(self.fields) if self.fields else None


@dataclass(frozen=True)
class Quarantined:
    """An unusable row, or the whole file when `row` is 0. `reason` is one fixed word."""

    row: int
    reason: str
    detail: str
    excerpt: str = ""


@dataclass
class Ingested:
    """What one file gave."""

    digest: str
    n_bytes: int
    mtime_ns: int
    samples: list[Located] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)

    @property
    def content_digest(self) -> str:
        """Digest of the usable rows and of what was quarantined: equal when nothing that matters changed."""
        rows = (f"{s.row} {s.sample.sample_id} {s.metadata or ''}" for s in self.samples)
        return digest([lines_digest(rows), [[q.row, q.reason] for q in self.quarantine]])


def shard_key(file: str) -> str:
    """Partition key of a relative path: a readable slug plus a short hash, safe in URLs and directory names."""
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", file).strip("-._")[:60] or "file"
    return f"{slug}-{digest(file)[:8]}"


def discover(folder: Path, setting: str = "pool.path") -> list[SourceFile]:
    """The source files below `folder` (or the one file it is), sorted by path; hidden files are left out.

    Raises:
        IconError: the folder is missing or holds no usable file, or a symlink leads out of it.
    """
    if folder.is_file():
        return [SourceFile(shard_key(folder.name), folder.name, folder.resolve())]
    if not folder.is_dir():
        raise IconError(f"{folder}: no such folder; create it or change {setting}")
    found = [
        SourceFile(shard_key(name), name, confined(path, folder, setting))
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in FORMATS
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
        and path.is_file()
        for name in [path.relative_to(folder).as_posix()]
    ]
    if not found:
        raise IconError(f"{folder}: holds no {', '.join(FORMATS)} file; put data there or change {setting}")
    return found


def ingest(path: Path, max_chars: int) -> Ingested:
    """Read one source file. A bad row never stops the rest; an unreadable file becomes one quarantined row 0."""
    stat = path.stat()
    result = Ingested(file_digest(path), stat.st_size, stat.st_mtime_ns)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        for row, value, raw in readers[path.suffix.lower()](path):
            _take(result, row, value, raw, max_chars)
    except Rejected as error:
        result.quarantine.append(Quarantined(0, error.reason, str(error)))
    if not result.samples and not result.quarantine:
        result.quarantine.append(Quarantined(0, "empty_file", "the file holds no rows"))
    return result


def _take(result: Ingested, row: int, value: Any, raw: str, max_chars: int) -> None:
    try:
        if isinstance(value, Rejected):
            raise value
        sample, fields = parse_row(value, max_chars)
    except Rejected as error:
        result.quarantine.append(Quarantined(row, error.reason, str(error), raw[:_EXCERPT_CHARS]))
    else:
        result.samples.append(Located(row, sample, fields))


Read = Iterator[tuple[int, Any, str]]  # row number, decoded value or the Rejected that came instead, its raw text


def _read_jsonl(path: Path) -> Read:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, Rejected("not_utf8", _utf8_fault(error)), raw.decode("utf-8", "replace")
                continue
            yield number, _decode(text), text.strip()


def _read_json(path: Path) -> Read:
    rows = _decode(_whole_text(path))
    if isinstance(rows, Rejected):
        raise rows
    if not isinstance(rows, list):
        raise Rejected("wrong_type", f"a .json file must hold a list of rows, not {type(rows).__name__}")
    for number, value in enumerate(rows, 1):
        yield number, value, _as_json(value)


def _read_csv(path: Path) -> Read:
    csv.field_size_limit(1 << 28)
    reader = csv.DictReader(io.StringIO(_whole_text(path), newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            extra = row.pop(None, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
            raw = ",".join(str(value) for value in row.values())
            yield (
                number,
                (Rejected("wrong_type", "more cells than the header has columns") if extra else row),
                raw,
            )
    except csv.Error as error:
        yield number + 1, Rejected("bad_csv", f"{error}; the rest of the file is not read"), ""


def _read_parquet(path: Path) -> Read:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise Rejected("bad_parquet", str(error).splitlines()[0][:_EXCERPT_CHARS]) from error
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        value = {key: _listed(cell) for key, cell in row.items()}
        yield number, value, _as_json(value)


def _listed(cell: Any) -> Any:
    return cell.to_list() if isinstance(cell, pl.Series) else cell


def _as_json(value: Any) -> str:
    """JSON text that any table can hold: what JSON has no form for becomes text, half surrogates stay escaped."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, sort_keys=True, default=str)
    return text


def _whole_text(path: Path) -> str:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("not_utf8", _utf8_fault(error)) from error


def _decode(text: str) -> Any:
    """The JSON value, or a Rejected in its place."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return Rejected("bad_json", f"{error.msg} at line {error.lineno} column {error.colno}")
    except RecursionError:
        return Rejected("bad_json", "nested too deep")
    except Rejected as error:
        return error


def _refuse_constant(name: str) -> Any:
    raise Rejected("wrong_type", f"{name} is not JSON")


def _utf8_fault(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8"


def sample_frame(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """Rows of the table `samples`."""
    rows = [
        {
            "shard": source.shard, "file": source.file, "row": s.row, "sample_id": s.sample.sample_id,
            "instruction": s.sample.instruction, "input": s.sample.input, "response": s.sample.response,
            "turns": s.sample.turns_json(), "n_chars": s.sample.n_chars,
            "metadata": s.metadata,
        }
        for s in ingested.samples
    ]  # fmt: skip
    text = ("shard", "file", "sample_id", "instruction", "input", "response", "turns", "metadata")
    schema = dict.fromkeys(text, pl.String) | {"row": pl.Int64, "n_chars": pl.Int64}
    return pl.DataFrame(rows, schema=schema)


def shard_row(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """The row of the table `shards`."""
    row = {
        "shard": source.shard, "file": source.file, "digest": ingested.digest, "n_bytes": ingested.n_bytes,
        "mtime_ns": ingested.mtime_ns, "n_samples": len(ingested.samples), "n_quarantined": len(ingested.quarantine),
        "ingested_at": datetime.now(UTC), "removed_at": None,
    }  # fmt: skip
    return pl.DataFrame([row], schema_overrides={"removed_at": pl.Datetime("us", "UTC")})


def quarantine_frame(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """Rows of the table `quarantine`."""
    rows = [(source.shard, source.file, q.row, q.reason, q.detail, q.excerpt) for q in ingested.quarantine]
    names = ("shard", "file", "row", "reason", "detail", "excerpt")
    schema = {name: pl.Int64 if name == "row" else pl.String for name in names}
    return pl.DataFrame(rows, schema=schema, orient="row")
