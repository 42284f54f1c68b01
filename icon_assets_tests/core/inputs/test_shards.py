"""The shards of a pool: which files they are, which are asked for, and what they share."""

from pathlib import Path

import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.shards import in_other_shards, named_shards, settled, shard_file, source_files
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, write_jsonl
from icon_assets_tests.furnished import furnish


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return furnish(tmp_path)


def test_shards_are_named_by_file_or_by_key_and_all_are_meant_when_none_is_named(workspace: Workspace) -> None:
    a, b = shards = [source.shard for source in source_files(workspace)]
    assert named_shards(workspace, [], shards) == shards
    assert named_shards(workspace, ["b.jsonl", a], shards) == [a, b]
    with pytest.raises(IconError, match=r"^c\.jsonl: no such file in the pool; known are a\.jsonl, b\.jsonl$"):
        named_shards(workspace, ["c.jsonl"], shards)


def test_a_file_is_compared_with_the_record_and_one_that_is_gone_is_named(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    source = source_files(workspace)[0]
    assert shard_file(workspace, source.shard) == source
    assert settled(source, store, 0).kind == "unchanged"
    write_jsonl(source.path, POOL_A[:1])
    assert settled(source, store, 0.01).kind == "changed"
    source.path.unlink()
    for look in (lambda: settled(source, store, 0.01), lambda: shard_file(workspace, source.shard)):
        with pytest.raises(IconError, match="its source file is gone"):
            look()


def test_samples_that_other_shards_hold_are_counted_once(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    a, b = (source.shard for source in source_files(workspace))
    of_b = store.query("SELECT sample_id FROM delta.pool WHERE shard = $shard", {"shard": b})["sample_id"].to_list()
    assert in_other_shards(store, a, [*of_b, of_b[0], "nobody's"]) == len(set(of_b))
    assert in_other_shards(store, b, ["nobody's"]) == 0
