"""The experiment's figures, read from the workspaces' views, and how they are printed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from icon_assets.core.evaluation.comparison import main_rows
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace

_QUERIES = {
    "leaderboard": "FROM leaderboard ORDER BY task, metric, arm",
    "differences": "FROM leaderboard_differences ORDER BY task, metric, arm, against",
    "trust": "FROM trust_figures ORDER BY arm, figure, against",
    "selector": "FROM selector_metrics ORDER BY metric, predictor",
    "costs": "SELECT work, sum(pairs) AS pairs, sum(tokens) AS tokens, sum(flops) AS flops, sum(seconds) AS seconds "
    "FROM scoring_costs GROUP BY work ORDER BY work",
}


def figures(workspace: Workspace) -> dict[str, Any]:
    """What one workspace has found so far."""
    store = Store(workspace.store_dir)
    tables = {name: store.query(query).to_dicts() for name, query in _QUERIES.items()}
    return {"fraction": workspace.settings.selection.fraction, **tables}


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    for name, found in result.items():
        if isinstance(found, dict) and "leaderboard" in found:
            yield f"\n== fraction {found['fraction']:g} (workspace {name})"
            yield from _leaderboard(found["leaderboard"])
            yield from _table("differences (paired bootstrap over items and seeds)", found["differences"], 4)
            yield from _table("trust", found["trust"], 3)
            yield from _table("selector, on held-out samples", found["selector"], 3)
            yield from _table("cost of scoring", found["costs"], 1)
    yield from _table("scores", result["variants"]["scores"], 3)
    yield from _table("scores on probes they have not seen, against the paper's", result["variants"]["differences"], 4)


def _leaderboard(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line per arm, one column per metric that the headline is made of."""
    headline = main_rows(pl.DataFrame(rows)).to_dicts() if rows else []
    columns = sorted({(row["task"], row["metric"]) for row in headline})
    cells = {(row["arm"], row["task"], row["metric"]): row for row in headline}
    yield "| arm | " + " | ".join(f"{task} {metric}" for task, metric in columns) + " |"
    for arm in sorted({row["arm"] for row in headline}):
        found = [cells.get((arm, *column)) for column in columns]
        yield f"| {arm} | " + " | ".join(_cell(row) if row else "-" for row in found) + " |"


def _cell(row: Mapping[str, Any]) -> str:
    spread = f" ± {row['sd_over_seeds']:.3f}" if row["sd_over_seeds"] is not None else ""
    return f"{row['mean']:.3f}{spread}"


def _table(title: str, rows: Sequence[Mapping[str, Any]], digits: int) -> Iterator[str]:
    yield f"\n{title}"
    if not rows:
        yield "(nothing yet)"
        return
    yield "| " + " | ".join(rows[0]) + " |"
    for row in rows:
        yield "| " + " | ".join(f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row.values()) + " |"
