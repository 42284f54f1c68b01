"""What is measured of a model, and the rows that it becomes."""

from pathlib import Path

import polars as pl

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.evaluation.measure import held_out_samples
from icon_assets.core.evaluation.metric import Item, Metric, item_rows, result_rows
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca, write_jsonl


def test_held_out_rows_that_can_not_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "held.jsonl", [alpaca("Name a lake.", "Como."), {"x": 1}, alpaca("Name a sea.", "Baltic.")])
    seen: list[pl.DataFrame] = []

    def encode(rows: pl.DataFrame) -> list[Encoded]:
        seen.append(rows)
        return [Encoded((1,), (n,)) for n in range(rows.height)]

    said: list[str] = []
    samples = held_out_samples(Workspace(tmp_path, Settings()), "held.jsonl", encode, said.append)
    assert [(s.row, s.stratum, s.encoded) for s in samples] == [
        (1, "all", Encoded((1,), (0,))),
        (3, "all", Encoded((1,), (1,))),
    ]
    assert seen[0]["response"].to_list() == ["Como.", "Baltic."]
    assert len(said) == 1
    assert said[0].startswith("held.jsonl:2: left out of the held-out samples: ")


def test_metrics_become_one_row_each_and_one_of_each_item() -> None:
    metrics = [Metric("sums", "acc", 0.5, 0.1, (Item(0, 1.0), Item(1, 0.0, 2.0))), Metric("sums", "acc_norm", 1, None)]
    assert result_rows(metrics, "c", "icon", 3).rows() == [
        ("c", "icon", 3, "sums", "acc", 0.5, 0.1),
        ("c", "icon", 3, "sums", "acc_norm", 1.0, None),
    ]
    assert item_rows(metrics, "c").rows() == [("c", "sums", "acc", 0, 1.0, 1.0), ("c", "sums", "acc", 1, 0.0, 2.0)]
    assert result_rows([], "c", "icon", 3).height == item_rows([], "c").height == 0
