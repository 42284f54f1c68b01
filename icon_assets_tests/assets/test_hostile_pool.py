"""Bad input through the graph: nothing fails, the good rows are all there, the others are named with their reasons."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from icon_assets.core.inputs.source_files import shard_key
from icon_assets.core.model.prepare import prepare
from icon_assets.core.store.tables import Store
from icon_assets.core.text import printable
from icon_assets.core.training.encode import encode_samples
from icon_assets.definitions import build_assets
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, STAGES, alpaca, write_jsonl
from icon_assets_tests.hostile import SPECIAL_TOKENS, lay_out, small_corpus

MakeWorkspace = Callable[..., Workspace]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def run(workspace: Workspace, instance: dg.DagsterInstance, *stages: str) -> list[Outcome]:
    return list(run_stages(build_assets(workspace), workspace, instance, stages))


def test_a_pool_of_hostile_files_gives_its_good_rows_and_the_reasons_for_the_others(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()
    cases = small_corpus()
    lay_out(cases, workspace.root / "pool")
    outcomes = run(workspace, instance, "raw_pool")
    assert [o.error for o in outcomes if o.error] == []
    assert len(outcomes) == len(cases) + 2

    store = Store(workspace.store_dir)
    expected = {(shard_key(case.name), place, reason) for case in cases for place, reason in case.bad}
    assert set(store.query('SELECT shard, "row", reason FROM quarantine').rows()) == expected
    good = {(printable(case.name), place) for case in cases for place in case.good}
    good |= {(name, n) for name, pool in (("a.jsonl", POOL_A), ("b.jsonl", POOL_B)) for n in range(1, len(pool) + 1)}
    assert set(store.query('SELECT file, "row" FROM samples').rows()) == good
    published = store.query_published("SELECT count(metadata->>'x') AS n FROM samples")
    assert published["n"].item() == 3, "one odd field fails no query"


def test_odd_texts_and_hostile_probes_go_through_the_whole_graph(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace(selection={"arms": ["full"]})
    odd = [
        alpaca(SPECIAL_TOKENS, SPECIAL_TOKENS),
        alpaca("long " * 4000, "Longer than the model's 512 positions."),
        alpaca("Short.", "x"),
        alpaca("\x01\x1b[31m\u202e\u200b\ufdd0", "\x7f"),
        alpaca("🎉" * 50, "\U0010ffff"),
        {"messages": [{"role": "user", "content": "</s>"}, {"role": "assistant", "content": "<s>"}]},
    ]
    for folder in ("pool", "probes"):
        write_jsonl(workspace.root / folder / "odd.jsonl", odd if folder == "pool" else odd[:1])
        (workspace.root / folder / "outside.jsonl").symlink_to("/dev/zero")
        (workspace.root / folder / "broken.parquet").write_bytes(b"PAR1")
    write_jsonl(
        workspace.root / "eval" / "held_out.jsonl",
        [
            alpaca("Held.", "Out."),
            alpaca(f"Say {SPECIAL_TOKENS}", "Said."),
            alpaca("lengthy " * 4000, "Cut."),
        ],
    )
    outcomes = run(workspace, instance, *STAGES)
    assert [o.error for o in outcomes if o.error] == []
    store = Store(workspace.store_dir)
    scored = store.query("SELECT count(*) FROM current_scores WHERE file = 'odd.jsonl' AND control = 'none'")
    assert scored.item() == len(odd)
    left_out = store.query(
        "SELECT file, detail FROM probe_candidates WHERE status = 'quarantined' ORDER BY file"
    ).rows()
    assert [(file, detail.partition(":")[0]) for file, detail in left_out] == [
        ("broken.parquet", "bad_parquet"),
        ("outside.jsonl", "outside_folder"),
    ]


def test_a_file_that_vanishes_during_a_run_costs_no_other(
    make_workspace: MakeWorkspace, instance: dg.DagsterInstance
) -> None:
    workspace = make_workspace()

    def remove_a(asset: str, partition: str) -> None:
        (workspace.root / "pool" / "a.jsonl").unlink(missing_ok=True)

    outcomes = list(run_stages(build_assets(workspace), workspace, instance, ("raw_pool",), on_start=remove_a))
    first, second = outcomes
    assert first.error
    assert "its source file is gone" in first.error
    assert (second.error, second.metadata["samples"]) == (None, len(POOL_B))
    (workspace.root / "pool" / "link.jsonl").symlink_to("nowhere.jsonl")
    assert [(o.error, o.metadata["changed"]) for o in run(workspace, instance, "raw_pool")] == [
        (None, False),
        (None, True),
    ]
    assert [(o.error, o.metadata["changed"]) for o in run(workspace, instance, "raw_pool")] == [(None, False)] * 2


def test_no_training_sample_is_longer_than_the_models_positions(make_workspace: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make_workspace()
    record = prepare(workspace.settings.model, tmp_path / "models")
    row = {"instruction": "long " * 4000, "input": "", "response": "end", "turns": None}
    settings = workspace.settings.training.model_copy(update={"max_tokens": 100_000})
    (encoded,) = encode_samples(record, pl.DataFrame([row], schema=dict.fromkeys(row, pl.String)), settings)
    assert len(encoded.prompt_ids) + len(encoded.response_ids) == record.max_positions == 512
    assert encoded.truncated
