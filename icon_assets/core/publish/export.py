"""A selection as a folder that other tools train on: the data, a card that says what it is, and where each sample comes from.

The same selection always gives the same bytes. Anything that can be wrong with the place is said before anything is written.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import polars as pl
import yaml

from icon_assets.core.digests import canonical_json, file_digest, lines_digest
from icon_assets.core.encoding.prompts import messages_before_response, transcript
from icon_assets.core.errors import IconError
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.passes.encoder import sample_of
from icon_assets.core.publish.choice import Selected, selected
from icon_assets.core.publish.templates import page
from icon_assets.core.selection.choose import ranks_by
from icon_assets.core.store.tables import Store, sql_text
from icon_assets.core.text import Markdown
from icon_assets.settings import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["alpaca", "messages", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

CARD, MANIFEST, RECORD, LLAMA_FACTORY = "README.md", "manifest.jsonl", "icon_export.json", "dataset_info.json"
SHARD_BYTES = 256 << 20  # a data file that has grown beyond this is the last part but one
_BATCH_ROWS = 1000
_SHOWN_FILES = 50
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "README*")
# The names the Hugging Face hub knows, as far as data come under them.
_HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "cc0-1.0", "cc-by-2.0", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "odc-by", "odbl", "pddl", "unlicense",
}  # fmt: skip
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True)
class Exported:
    """What was written. `flattened`: chats whose earlier turns became part of the instruction."""

    directory: Path
    arm: str
    format: Format
    digest: str
    samples: int
    flattened: int
    files: Sequence[str]


def export(
    workspace: Workspace, arm: str, form: Format, out: Path | None = None, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write the newest selection of an arm to `out` (default `<workspace>/exports/<arm>-<format>`), whole or not at all.

    An earlier export of the same arm and format is replaced.

    Raises:
        IconError: nothing is selected, samples have left the pool, `out` can't be used, or the disk refused.
    """
    chosen = selected(Store(workspace.store_dir), arm)
    target = allowed_place(workspace, out or workspace.exports_dir / f"{arm}-{form}")
    refuse_foreign(target, arm, form)
    manifest = chosen.lines.select("sample_id", "file", "row", "rank", "score")
    with disk_faults(target), sole_writer(target), new_directory(target) as partial:
        data = _Parts(partial, form, shard_bytes)
        digest, flattened = _write_samples(chosen, data)
        manifest.write_ndjson(partial / MANIFEST)
        result = Exported(target, arm, form, digest, manifest["sample_id"].n_unique(), flattened, data.names)
        facts = {**_facts(workspace, chosen), **vars(result), "data_files": _data_files(partial, data.names)}
        (partial / CARD).write_text(_card(chosen, result, facts), "utf-8")
        (partial / LLAMA_FACTORY).write_text(_llama_factory(result), "utf-8")
        (partial / RECORD).write_text(_record(partial, chosen, result), "utf-8")
    return result


# The place


def allowed_place(workspace: Workspace, out: Path) -> Path:
    """Where `out` leads, if something may be written there: in the workspace only below `exports/`, and never among inputs.

    Raises:
        IconError: it may not.
    """
    target, settings = out.expanduser().resolve(), workspace.settings
    inputs = [workspace.input_path(name).resolve() for name in (settings.pool.path, settings.probes.path)]
    if any(target.is_relative_to(place) for place in inputs):
        raise IconError(f"{out}: lies among the inputs and would become one; choose another --out")
    inside = target.is_relative_to(workspace.root) and not target.is_relative_to(workspace.exports_dir.resolve())
    if inside or target == workspace.exports_dir.resolve() or workspace.root.is_relative_to(target):
        raise IconError(f"{out}: belongs to the workspace; choose a name below {workspace.exports_dir}, or outside")
    return target


def refuse_foreign(target: Path, arm: str, form: Format) -> None:
    """Replace nothing but an earlier export of this arm in this format, to which nobody has added anything.

    Raises:
        IconError: something else is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        record = json.loads((target / RECORD).read_text("utf-8"))
        was, files = (record["arm"], record["format"]), {RECORD, *record["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IconError(f"{target}: exists and is no export of icon-assets; choose another --out") from error
    if was != (arm, form):
        raise IconError(f"{target}: holds the export of arm {was[0]} as {was[1]}; choose another --out or remove it")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if added := sorted(present - files):
        raise IconError(f"{target / added[0]}: was not written by the export and would be lost; move it or choose another --out")  # fmt: skip


@contextmanager
def disk_faults(target: Path) -> Iterator[None]:
    """A disk that refuses: one line that says the mend."""
    try:
        yield
    except OSError as error:
        raise IconError(f"{target}: could not be written ({error.strerror or error}); check free space and permissions, "
                        "or choose another --out") from error  # fmt: skip


# The data


def _write_samples(chosen: Selected, data: "_Parts") -> tuple[str, int]:
    """Write every sample; returns the digest of the rows, in their order, and how many chats were flattened."""
    flattened = 0

    def written() -> Iterator[str]:
        nonlocal flattened
        for sample in _samples(chosen):
            flattened += data.form == "alpaca" and bool(sample["turns"])
            row = _ROWS[data.form](sample)
            data.add(row)
            yield canonical_json(row)

    digest = lines_digest(written())
    data.close()
    return digest, flattened


def _samples(chosen: Selected) -> Iterator[dict[str, Any]]:
    """The samples with their texts, batch by batch: those of a large pool need not all be in memory."""
    parameters = {"arm": chosen.arm, "subset_id": chosen.subset_id}
    with chosen.store.connect() as con:
        for batch in con.sql(sql_text("chosen_samples.sql"), params=parameters).to_arrow_reader(_BATCH_ROWS):
            yield from batch.to_pylist()


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
        "sample_id": row["sample_id"], "rank": row["rank"], "score": row["score"], "instruction": row["instruction"],
        "input": row["input"], "output": row["response"], **_messages(row), "file": file, "row": line,
    }  # fmt: skip


_ROWS = {"alpaca": _alpaca, "messages": _messages, "parquet": _everything}
_TURNS = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
# Columns in the words of the Hugging Face hub.
_FEATURES: Mapping[str, list[dict[str, Any]]] = {
    "alpaca": [{"name": name, "dtype": "string"} for name in ("instruction", "input", "output")],
    "messages": [{"name": "messages", "list": _TURNS}],
    "parquet": [
        {"name": "sample_id", "dtype": "string"}, {"name": "rank", "dtype": "int64"}, {"name": "score", "dtype": "float64"},
        *({"name": name, "dtype": "string"} for name in ("instruction", "input", "output")),
        {"name": "messages", "list": _TURNS}, {"name": "file", "dtype": "string"}, {"name": "row", "dtype": "int64"},
    ],
}  # fmt: skip


def _arrow_schema() -> "pa.Schema":
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    turns = pa.list_(pa.struct([(turn["name"], types[turn["dtype"]]) for turn in _TURNS]))
    return pa.schema([(column["name"], types.get(column.get("dtype", ""), turns)) for column in _FEATURES["parquet"]])


class _Parts:
    """The data files: `train.jsonl` or `train.parquet`, or several in `train/` when one would be too large."""

    def __init__(self, directory: Path, form: Format, limit: int) -> None:
        self.form: Format = form
        self._directory, self._limit = directory, limit
        self._suffix = "parquet" if form == "parquet" else "jsonl"
        self._paths: list[Path] = []
        self._file: IO[bytes] | None = None
        self._rows: list[dict[str, Any]] = []

    @property
    def names(self) -> list[str]:
        return [path.relative_to(self._directory).as_posix() for path in self._paths]

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH_ROWS:
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


# The card


def _card(chosen: Selected, result: Exported, facts: Mapping[str, Any]) -> str:
    head = {
        "license": _hub_licence(chosen.lines),
        "pretty_name": f"{result.arm}: {result.samples} instruction samples chosen with icon-assets",
        "size_categories": [next((name for limit, name in _SIZES if result.samples < limit), "10M<n<100M")],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "data-selection", "icon-assets"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": list(result.files)}]}],
        "dataset_info": {"features": _FEATURES[result.format]},
    }
    top = Markdown(yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120))
    return page("data_card.md", **facts, head=top)


def _facts(workspace: Workspace, chosen: Selected) -> dict[str, Any]:
    lines, store = chosen.lines, chosen.store
    shards = store.query("SELECT file, digest, n_samples, n_quarantined FROM shards")
    files = (
        lines.group_by("file")
        .agg(lines=pl.len())
        .join(shards, on="file")
        .sort("lines", "file", descending=[True, False])
    )
    return {
        "reason": _reason(chosen), "control": ranks_by(chosen.arm), "selector": chosen.selector, "subset_id": chosen.subset_id,
        "chosen_at": chosen.event("selected_subset")["created_at"], "choice": chosen.event("selected_subset"),
        "scores": chosen.event("sample_scores"), "score_key": chosen.score_key, "model": chosen.event("base_model"),
        "probes": chosen.event("probe_set"), "source_files": files.head(_SHOWN_FILES).to_dicts(),
        "files_not_shown": max(0, files.height - _SHOWN_FILES), "lines": lines.height,
        "profile": chosen.profile.to_dicts(), "trust": chosen.trust.to_dicts(),
        "licences": _licences(lines), "licence_files": _licence_files(workspace),
    }  # fmt: skip


def _reason(chosen: Selected) -> str:
    """Why the arm chose, with the name of the arm that it follows."""
    reference = chosen.event("selected_subset")["settings"].get("reference", "another arm")
    return chosen.lines["reason"][0].replace("another arm", reference)


def _licences(lines: pl.DataFrame) -> list[tuple[str, int]]:
    """What the source rows say of themselves, most frequent first."""
    return Counter(licence or "not stated" for licence in lines["licence"]).most_common(20)


def _hub_licence(lines: pl.DataFrame) -> str | list[str]:
    """The hub's word for the licences: `unknown` when a line states none, `other` when the hub has no name for one."""
    stated = {None if text is None else text.strip().lower().replace(" ", "-") for text in lines["licence"].unique()}
    if None in stated:
        return "unknown"
    return sorted(filter(None, stated)) if stated <= _HUB_LICENCES else "other"


def _licence_files(workspace: Workspace) -> list[dict[str, str]]:
    """Files in the pool's folder that may state a licence, with what their first line says."""
    pool = workspace.input_path(workspace.settings.pool.path).resolve()
    folder = pool if pool.is_dir() else pool.parent
    found = sorted({path for pattern in _LICENCE_FILES for path in folder.rglob(pattern)})
    return [
        {"file": path.relative_to(folder).as_posix(), "digest": file_digest(path), "says": _first_line(path)}
        for path in found
        if path.is_file() and not path.is_symlink() and path.suffix.lower() in {"", ".md", ".txt", ".rst"}
    ]


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as handle:
        return next((line.strip() for line in handle if line.strip()), "")[:120]


def _data_files(partial: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": (partial / name).stat().st_size, "digest": file_digest(partial / name)}
        for name in names
    ]


# What other programs read


def _llama_factory(result: Exported) -> str:
    """The entry of LLaMA-Factory's `dataset_info.json`; this folder is then its `dataset_dir`."""
    entry: dict[str, Any] = {"file_name": result.files[0] if len(result.files) == 1 else "train"}
    if result.format == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        entry |= {"formatting": "alpaca", "columns": columns}
    else:
        tags = {
            "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system", "observation_tag": "tool",
        }  # fmt: skip
        entry |= {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    return json.dumps({f"icon_{result.arm}": entry}, indent=2) + "\n"


def _record(partial: Path, chosen: Selected, result: Exported) -> str:
    """What the export is, for programs, and which files are its own."""
    record = {
        "arm": result.arm, "format": result.format, "subset_id": chosen.subset_id, "digest": result.digest,
        "samples": result.samples, "flattened": result.flattened,
        "files": sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()),
    }  # fmt: skip
    return json.dumps(record, indent=2) + "\n"
