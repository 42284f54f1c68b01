"""From a source file to samples, row by row.

Nothing is lost silently. An unusable row is quarantined with its reason, and so is an unreadable file.
"""

import json
import math
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, BinaryIO

import polars as pl

from icon_assets.core.digests import digest, lines_digest, stream_digest
from icon_assets.core.inputs.formats import Row, read_rows, row_limit
from icon_assets.core.inputs.sample import Rejected, Sample, parse_row
from icon_assets.core.inputs.source_files import SourceFile, opened
from icon_assets.core.text import printable

# Fields for the kind of task; the first one present counts. Probes are drawn evenly over these: a new name must go to
# the end, or the draw of existing probe sets would change.
STRATUM_FIELDS = ("stratum", "dataset", "task", "category", "source")
_EXCERPT_CHARS = 200
_DETAIL_CHARS = 400


@dataclass(frozen=True, slots=True)
class Located:
    """A usable sample and its place; `row` counts from 1. `metadata`: the row's other fields as JSON text."""

    row: int
    sample: Sample
    metadata: str | None

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.metadata) if self.metadata else {}

    def stratum(self, otherwise: str) -> str:
        """The row's kind of task, if it names one."""
        fields = self.fields
        return next((str(fields[name]) for name in STRATUM_FIELDS if fields.get(name)), otherwise)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An unusable row, or the whole file when `row` is 0. `reason` is one fixed word."""

    row: int
    reason: str
    detail: str
    excerpt: str = ""


@dataclass
class Ingested:
    """The result of reading one file."""

    digest: str
    n_bytes: int = 0
    mtime_ns: int = 0
    samples: list[Located] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)

    @property
    def content_digest(self) -> str:
        """Digest of the usable rows and of the quarantined ones. It is equal when nothing relevant changed."""
        rows = (f"{s.row} {s.sample.sample_id} {s.metadata or ''}" for s in self.samples)
        return digest([lines_digest(rows), [[q.row, q.reason] for q in self.quarantine]])


def ingest(source: SourceFile, max_chars: int, *, unanswered: bool = False) -> Ingested:
    """Read one source file. A bad row never stops the rest; an unreadable file becomes one quarantined row 0.

    `unanswered`: rows need no response, see `parse_row`.
    """
    try:
        with opened(source) as handle:
            status = os.fstat(handle.fileno())
            content = stream_digest(handle)
            handle.seek(0)
            result = Ingested(content, status.st_size, status.st_mtime_ns)
            return _ingested(result, source, handle, max_chars, unanswered)
    except Rejected as error:
        return Ingested(digest([error.reason]), quarantine=[_quarantined(Row(0, error), error)])


def _ingested(result: Ingested, source: SourceFile, handle: BinaryIO, max_chars: int, unanswered: bool) -> Ingested:
    limit = row_limit(max_chars)
    try:
        for row in read_rows(handle, PurePath(source.file).suffix.lower(), limit):
            _take(result, row, max_chars, limit, unanswered)
    except Rejected as error:
        result.quarantine.append(_quarantined(Row(0, error), error))
    if not result.samples and not result.quarantine:
        result.quarantine.append(Quarantined(0, "empty_file", "the file holds no rows"))
    return result


def _take(result: Ingested, row: Row, max_chars: int, limit: int, unanswered: bool) -> None:
    try:
        if isinstance(row.value, Rejected):
            raise row.value
        sample, fields = parse_row(row.value, max_chars, unanswered=unanswered)
        result.samples.append(Located(row.number, sample, _metadata(fields, limit) if fields else None))
    except Rejected as error:
        result.quarantine.append(_quarantined(row, error))


def _metadata(fields: dict[str, Any], limit: int) -> str:
    """The other fields of a row as JSON text that every parser accepts. For DuckDB, one bad text would fail queries
    over all rows.
    """
    text = as_json(fields)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise Rejected("not_utf8", "a field holds half of a surrogate pair") from error
    if size > limit:
        raise Rejected("over_limit", f"{size:,} bytes of other fields; {limit:,} are allowed")
    return text


def as_json(value: Any) -> str:
    """JSON text of a decoded row. Values without a JSON form become text: dates, decimals, NaN, bytes (in hex)."""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_as_text, allow_nan=False)
    except ValueError:  # NaN or Infinity, from Parquet
        return json.dumps(_finite(value), ensure_ascii=False, sort_keys=True, default=_as_text)


def _as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _quarantined(row: Row, error: Rejected) -> Quarantined:
    if row.raw or isinstance(row.value, Rejected):
        raw = row.raw[: 4 * _EXCERPT_CHARS].decode("utf-8", "replace")
    else:
        raw = as_json(row.value)
    excerpt = printable(raw.strip()[:_EXCERPT_CHARS])
    return Quarantined(row.number, error.reason, printable(str(error)[:_DETAIL_CHARS]), excerpt)


def sample_frame(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """Rows of the table `samples`."""
    samples = [located.sample for located in ingested.samples]
    columns = {
        "shard": source.shard,
        "file": source.file,
        "row": [located.row for located in ingested.samples],
        "sample_id": [s.sample_id for s in samples],
        "instruction": [s.instruction for s in samples],
        "input": [s.input for s in samples],
        "response": [s.response for s in samples],
        "turns": [s.turns_json() for s in samples],
        "n_chars": [s.n_chars for s in samples],
        "metadata": [located.metadata for located in ingested.samples],
    }
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String) | {"row": pl.Int64, "n_chars": pl.Int64})


def shard_row(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """The row of the table `shards`."""
    row = {
        "shard": source.shard,
        "file": source.file,
        "digest": ingested.digest,
        "n_bytes": ingested.n_bytes,
        "mtime_ns": ingested.mtime_ns,
        "n_samples": len(ingested.samples),
        "n_quarantined": len(ingested.quarantine),
        "ingested_at": datetime.now(UTC),
        "removed_at": None,
    }
    return pl.DataFrame([row], schema_overrides={"removed_at": pl.Datetime("us", "UTC")})


def quarantine_frame(source: SourceFile, ingested: Ingested) -> pl.DataFrame:
    """Rows of the table `quarantine`."""
    names = ("row", "reason", "detail", "excerpt")
    columns = {name: [getattr(q, name) for q in ingested.quarantine] for name in names}
    columns = {"shard": source.shard, "file": source.file, **columns}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String) | {"row": pl.Int64})
