"""The result of every measurement of a model: figures, with the items that they are computed from."""

from dataclasses import dataclass

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
