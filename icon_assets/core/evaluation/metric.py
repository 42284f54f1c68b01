"""The result of every measurement of a model: figures, with the items that they are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

NLL = "nll_per_token"
PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Item:
    """One item's part in a metric: `item` is its place in the data."""

    item: int
    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Metric:
    """One figure. `stderr` is None if there is none, as for a single item.

    `items`: given if the figure is sum(value) / sum(weight) over them, otherwise empty.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    items: tuple[Item, ...] = ()


def result_rows(metrics: Sequence[Metric], checkpoint_id: str, arm: str, seed: int) -> pl.DataFrame:
    """Rows of the table `eval_results`."""
    columns = {
        "checkpoint_id": pl.String,
        "arm": pl.String,
        "seed": pl.Int64,
        "task": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "stderr": pl.Float64,
    }
    named = {"checkpoint_id": checkpoint_id, "arm": arm, "seed": seed}
    rows = [{**named, "task": m.task, "metric": m.metric, "value": m.value, "stderr": m.stderr} for m in metrics]
    return pl.DataFrame(rows, columns)


def item_rows(metrics: Sequence[Metric], checkpoint_id: str) -> pl.DataFrame:
    """Rows of the table `eval_items`."""
    columns = {
        "checkpoint_id": pl.String,
        "task": pl.String,
        "metric": pl.String,
        "item": pl.Int64,
        "value": pl.Float64,
        "weight": pl.Float64,
    }
    rows = [
        (checkpoint_id, metric.task, metric.metric, item.item, item.value, item.weight)
        for metric in metrics
        for item in metric.items
    ]
    return pl.DataFrame(rows, columns, orient="row")
