"""A selection as a folder for training with other tools: the data, a data card, and the source line of each sample.

The same selection always gives the same bytes. The place is checked before anything is written."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from icon_assets.core.digests import canonical_json, file_digest, lines_digest
from icon_assets.core.files import new_directory, sole_writer
from icon_assets.core.publish.choice import RecordedChoice, recorded_choice
from icon_assets.core.publish.data_card import card_facts, data_card
from icon_assets.core.publish.dataset import BATCH_ROWS, ROWS, SHARD_BYTES, DataFiles, Exported, Format
from icon_assets.core.publish.place import (
    CARD,
    LLAMA_FACTORY,
    MANIFEST,
    RECORD,
    allowed_place,
    disk_faults,
    refuse_foreign,
)
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


def export(
    workspace: Workspace, arm: str, form: Format, out: Path | None = None, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write the newest selection of an arm to `out` (default `<workspace>/exports/<arm>-<format>`), whole or not at
    all.

    An earlier export of the same arm and format is replaced.

    Raises:
        IconError: nothing is selected, samples have left the pool, `out` can't be used, or the disk can't be written.
    """
    chosen = recorded_choice(Store(workspace.store_dir), arm)
    target = allowed_place(workspace, out or workspace.exports_dir / f"{arm}-{form}")
    refuse_foreign(target, arm, form)
    manifest = chosen.lines.select("sample_id", "file", "row", "rank", "score")
    with disk_faults(target), sole_writer(target), new_directory(target) as partial:
        data = DataFiles(partial, form, shard_bytes)
        digest, flattened = _write_samples(chosen, data)
        manifest.write_ndjson(partial / MANIFEST)
        result = Exported(target, arm, form, digest, manifest["sample_id"].n_unique(), flattened, data.names)
        facts = {**card_facts(workspace, chosen), **vars(result), "data_files": _data_files(partial, data.names)}
        (partial / CARD).write_text(data_card(chosen, result, facts), "utf-8")
        (partial / LLAMA_FACTORY).write_text(_llama_factory(result), "utf-8")
        (partial / RECORD).write_text(_record(partial, chosen, result), "utf-8")
    return result


def _write_samples(chosen: RecordedChoice, data: "DataFiles") -> tuple[str, int]:
    """Write every sample. Returns the digest of the rows, in their order, and the number of flattened chats."""
    flattened = 0

    def written() -> Iterator[str]:
        nonlocal flattened
        for sample in _samples(chosen):
            flattened += data.form == "alpaca" and bool(sample["turns"])
            row = ROWS[data.form](sample)
            data.add(row)
            yield canonical_json(row)

    digest = lines_digest(written())
    data.close()
    return digest, flattened


def _samples(chosen: RecordedChoice) -> Iterator[dict[str, Any]]:
    """The samples with their texts, in batches, because those of a large pool may not fit into memory."""
    parameters = {"arm": chosen.arm, "subset_id": chosen.subset_id}
    with chosen.store.connect() as con:
        for batch in con.sql(sql_text("chosen_samples.sql"), params=parameters).to_arrow_reader(BATCH_ROWS):
            yield from batch.to_pylist()


def _data_files(partial: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": (partial / name).stat().st_size, "digest": file_digest(partial / name)}
        for name in names
    ]


def _llama_factory(result: Exported) -> str:
    """The entry of LLaMA-Factory's `dataset_info.json`; this folder is then its `dataset_dir`."""
    entry: dict[str, Any] = {"file_name": result.files[0] if len(result.files) == 1 else "train"}
    if result.format == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        entry |= {"formatting": "alpaca", "columns": columns}
    else:
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
            "observation_tag": "tool",
        }
        entry |= {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    return json.dumps({f"icon_{result.arm}": entry}, indent=2) + "\n"


def _record(partial: Path, chosen: RecordedChoice, result: Exported) -> str:
    """The description of the export for programs, with the list of its files."""
    record = {
        "arm": result.arm,
        "format": result.format,
        "subset_id": chosen.subset_id,
        "digest": result.digest,
        "samples": result.samples,
        "flattened": result.flattened,
        "files": sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()),
    }
    return json.dumps(record, indent=2) + "\n"
