"""The shards of the pool: its source files on disk, and the record of files that were removed or came back."""

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.changes import Found, compare, keys_on_record, on_record, wait_until_settled
from icon_assets.core.inputs.source_files import SourceFile, discover
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


def source_files(workspace: Workspace) -> list[SourceFile]:
    """The pool's source files on disk now."""
    folder = workspace.input_path(workspace.settings.pool.path)
    return discover(folder, on_record=keys_on_record(Store(workspace.store_dir)))


def named_shards(workspace: Workspace, names: Sequence[str], shards: Sequence[str]) -> Sequence[str]:
    """Those of `shards` that are named, by file below the pool folder or by partition key; all when none is named.

    Raises:
        IconError: a name that is neither.
    """
    files = {source.file: source.shard for source in source_files(workspace)} if names else {}
    wanted = {files.get(name, name) for name in names}
    if unknown := sorted(wanted - set(shards)):
        raise IconError(f"{unknown[0]}: no such file in the pool; known are {', '.join(sorted(files)[:5])}")
    return [shard for shard in shards if shard in wanted or not names]


def shard_file(workspace: Workspace, shard: str) -> SourceFile:
    """
    Raises:
        IconError: the shard's file is gone.
    """
    found = {source.shard: source for source in source_files(workspace)}
    if shard not in found:
        raise _gone(shard)
    return found[shard]


def settled(source: SourceFile, store: Store, settle_seconds: float) -> Found:
    """The file compared with the record, once nobody writes to it any more.

    Raises:
        IconError: it is gone, or is still being written to.
    """
    if not source.refused:
        wait_until_settled(source.path, settle_seconds)
    file = next(compare([source], on_record(store), 0), None)
    if file is None:
        raise _gone(source.shard)
    return file


def _gone(shard: str) -> IconError:
    return IconError(f"shard {shard}: its source file is gone; `icon-assets run` takes it out of the pool")


def in_other_shards(store: Store, shard: str, sample_ids: Sequence[str]) -> int:
    """How many of these samples are in other shards of the pool, too."""
    return store.query(
        "SELECT count(DISTINCT sample_id) AS n FROM delta.pool "
        "WHERE shard <> $shard AND sample_id IN (SELECT unnest($ids))",
        {"shard": shard, "ids": sample_ids},
    )["n"].item()


def revive_shard(store: Store, shard: str, mtime_ns: int) -> None:
    """Record a file with unchanged content: one that was touched, or one that came back after it was deleted."""
    rows = store.query("FROM delta.shards WHERE shard = $shard", {"shard": shard})
    back = rows.with_columns(mtime_ns=pl.lit(mtime_ns, pl.Int64), removed_at=pl.lit(None, rows.schema["removed_at"]))
    store.replace("shards", back, shard=shard)


def retire_shard(store: Store, shard: str) -> None:
    """Take a shard out of the current views. Its rows and everything made from it stay for audits."""
    rows = store.query("FROM delta.shards WHERE shard = $shard AND removed_at IS NULL", {"shard": shard})
    if rows.height:
        store.replace("shards", rows.with_columns(removed_at=datetime.now(UTC)), shard=shard)
