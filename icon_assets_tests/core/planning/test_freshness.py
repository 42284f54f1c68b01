"""Which shards are up to date, and how that is put into words."""

from pathlib import Path

import pytest

from icon_assets.core.planning.freshness import Freshness, pool_freshness
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, alpaca, write_jsonl
from icon_assets_tests.core.planning.test_recipes import OnRecord, Record
from icon_assets_tests.furnished import RICH, flipped


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path)


def states(record: Record, workspace: Workspace | None = None) -> dict[str, tuple[str, str]]:
    """By file, as they are now."""
    workspace = workspace or record.workspace(RICH)
    recipes = OnRecord(workspace, Store(workspace.store_dir), record.events["rich"])
    return {shard.partition("-")[0]: state for shard, state in pool_freshness(recipes).states.items()}


CURRENT = ("unchanged", "")


def test_a_shard_is_current_until_its_file_changes(record: Record) -> None:
    assert states(record) == {"a.jsonl": CURRENT, "b.jsonl": CURRENT}
    file = record.root / "pool" / "a.jsonl"
    file.touch()
    assert states(record)["a.jsonl"] == CURRENT, "another time, the same content"
    write_jsonl(file, [*POOL_A, alpaca("Name a city in Italy.", "Turin")])
    assert states(record) == {"a.jsonl": ("stale", "text"), "b.jsonl": CURRENT}


def test_files_that_come_and_go_are_new_and_removed(record: Record) -> None:
    (record.root / "pool" / "b.jsonl").unlink()
    write_jsonl(record.root / "pool" / "c.jsonl", POOL_A)
    assert states(record) == {"a.jsonl": CURRENT, "b.jsonl": ("removed", ""), "c.jsonl": ("new", "")}


def test_a_changed_setting_makes_every_shard_stale_and_names_the_part_of_the_key(record: Record) -> None:
    workspace = record.workspace(flipped(RICH, {"controls.draws": 3}))
    assert states(record, workspace) == dict.fromkeys(("a.jsonl", "b.jsonl"), ("stale", "settings"))


def test_the_line_counts_what_is_pending_and_says_why() -> None:
    found = Freshness({"a": ("stale", "model, text"), "b": ("stale", "model"), "c": ("new", ""), "d": CURRENT})
    assert found.line == "1 of 4 shards new, 2 of 4 shards stale (model, text)"
    assert found.counts == {"new": 1, "stale": 2, "removed": 0, "unchanged": 1}
    assert not found.is_current
    assert (Freshness({"d": CURRENT}).line, Freshness({"d": CURRENT}).is_current) == ("all 1 shards are current", True)
