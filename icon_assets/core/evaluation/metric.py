"""What every measurement of a model gives: figures, with the items that they are made of."""

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
    """One figure. `stderr` is None where there is none, such as for a single item.

    `items`: where the figure is sum(value) / sum(weight) of them; empty where it is no such mean.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    items: tuple[Item, ...] = ()
