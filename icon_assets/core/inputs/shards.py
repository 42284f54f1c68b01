"""The shards of the pool: its source files on disk, and the record of files that were removed or came back."""

from datetime import UTC, datetime

import polars as pl

from icon_assets.core.inputs.changes import keys_on_record
from icon_assets.core.inputs.source_files import SourceFile, discover
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace


def source_files(workspace: Workspace) -> list[SourceFile]:
    """The pool's source files on disk now."""
    folder = workspace.input_path(workspace.settings.pool.path)
    return discover(folder, on_record=keys_on_record(Store(workspace.store_dir)))


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
