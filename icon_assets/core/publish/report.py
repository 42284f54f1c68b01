"""One self-contained HTML page about a workspace: what was measured, what was chosen, whether it pays, and how far to trust it.

Every section is a function of the store; where its table is empty, the page says what to run. Equal stores make equal pages.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import file_digest
from icon_assets.core.errors import IconError
from icon_assets.core.evaluation import comparison
from icon_assets.core.files import new_file
from icon_assets.core.publish.export import allowed_place, disk_faults
from icon_assets.core.publish.plots import curves, distribution, intervals
from icon_assets.core.publish.templates import page
from icon_assets.core.selection.choose import ranks_by
from icon_assets.core.store import ledger
from icon_assets.core.store.tables import Store, sql_text
from icon_assets.core.trust.figures import explained_by_length
from icon_assets.settings import Workspace

MARK = '<meta name="generator" content="icon-assets report">'
_BINS = 40
_LOSS_BINS = 100
_EXAMPLES = 2  # at each end and in the middle
_TEXT_CHARS = 500
_SHOWN_ROWS = 40
_SHOWN_MEASURES = 8


@dataclass(frozen=True)
class Report:
    """The page as a file. `missing`: sections that had nothing to show."""

    path: Path
    digest: str
    n_bytes: int
    missing: Sequence[str]


def write_report(workspace: Workspace, out: Path | None = None) -> Report:
    """Write the page to `out` (default `<workspace>/exports/report.html`), over an earlier report only.

    Raises:
        IconError: `out` can't be used, or the disk refused.
    """
    path = allowed_place(workspace, out or workspace.exports_dir / "report.html")
    with disk_faults(path):
        if path.exists() and not _is_report(path):
            raise IconError(f"{path}: exists and is no report of icon-assets; choose another --out")
        facts = gather(workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file(path, page("report.html", **facts))
        missing = [name for name, section in facts["sections"].items() if not section]
        return Report(path, file_digest(path), path.stat().st_size, missing)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return MARK.encode() in handle.read(2000)


def gather(workspace: Workspace) -> dict[str, Any]:
    """Everything the page shows; a section that is empty has nothing to show."""
    source = _Source(workspace)
    return {
        "mark": MARK, "version": version("icon-assets"), "workspace": workspace.root.name, "totals": source.totals,
        "model": source.model, "arms": source.arms, "primary": workspace.settings.controls.primary,
        "score_key": source.score_key, "changed_at": next(iter(source.products["created_at"]), None),
        "probe_set": next(iter(source.products.filter(pl.col("asset") == "probe_set")["digest"]), ""),
        "fraction": workspace.settings.selection.fraction, "length_warning": source.length_warning,
        "by_length": partial(explained_by_length, limit=source.length_warning),
        "featured": next((arm for arm in source.chosen if ranks_by(arm)), next(iter(source.chosen), "")),
        "sections": {
            "verdict": _verdicts(source), "leaderboard": _leaderboard(source), "differences": _differences(source),
            "pairwise": source.rows("FROM pairwise_results ORDER BY ALL"), "cost": _costs(source),
            "scores": _scores(source), "examples": _examples(source), "coverage": _coverage(source),
            "trust": _trust(source), "selector": source.rows(
                "FROM selector_metrics SEMI JOIN (FROM selectors WHERE is_current) USING (selector_id) ORDER BY ALL"
            ),
            "losses": _losses(source), "lineage": _lineage(source),
        },
    }  # fmt: skip


class _Source:
    """What several sections read, once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.store = workspace, Store(workspace.store_dir)
        self.length_warning = workspace.settings.selection.length_warning

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.store.query(sql, parameters or None).to_dicts()

    def named(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of a query in `sql/report/`."""
        return self.rows(sql_text(f"report/{name}.sql"), **parameters)

    @cached_property
    def score_key(self) -> str:
        keys = self.rows("SELECT score_key FROM score_keys WHERE is_current")
        return keys[0]["score_key"] if keys else ""

    @cached_property
    def model(self) -> dict[str, Any] | None:
        return next(iter(self.rows("FROM models ORDER BY prepared_at DESC LIMIT 1")), None)

    @cached_property
    def totals(self) -> dict[str, Any]:
        return self.named("totals", score_key=self.score_key)[0]

    @cached_property
    def products(self) -> pl.DataFrame:
        return self.store.query(sql_text("report/products.sql"))

    @cached_property
    def subsets(self) -> dict[str, str]:
        """The newest subset of each arm of the settings that has one."""
        made = ledger.latest(self.store, "selected_subset")
        return {arm: made[arm].digest for arm in self.workspace.settings.selection.arms if arm in made}

    @property
    def arms(self) -> list[str]:
        return list(self.subsets)

    @cached_property
    def differences(self) -> pl.DataFrame:
        return comparison.differences_of(self.store)

    @cached_property
    def scores(self) -> pl.DataFrame:
        return self.store.query(
            """
            SELECT sample_id, control, contribution, standard_error, n_context_tokens FROM sample_scores
            WHERE score_key = $score_key
            """,
            {"score_key": self.score_key},
        )

    @cached_property
    def ranking(self) -> pl.DataFrame:
        """The scored samples by their contribution under the primary control, best first; `place` counts from 0."""
        primary = self.scores.filter(pl.col("control") == self.workspace.settings.controls.primary)
        return primary.sort("contribution", "sample_id", descending=[True, False]).with_row_index("place")

    @cached_property
    def lengths(self) -> pl.DataFrame:
        """Tokens as a context of every sample of the pool, also of those that were not scored."""
        pool = self.store.query(sql_text("pool_scores.sql"), {"score_key": self.score_key})
        return pool.select("sample_id", "n_tokens")

    @cached_property
    def chosen(self) -> dict[str, pl.DataFrame]:
        """What each arm chose, best first, with the place in the ranking where it is scored; `full` is everything and left out."""
        rows = self.store.query(
            'SELECT arm, sample_id, "rank" FROM delta.selections WHERE list_contains($subsets, subset_id)',
            {"subsets": [subset for arm, subset in self.subsets.items() if arm != "full"]},
        ).join(self.ranking.select("sample_id", "place"), on="sample_id", how="left").join(
            self.lengths, on="sample_id", how="left"
        ).sort("rank")  # fmt: skip
        return {arm: rows.filter(pl.col("arm") == arm) for arm in self.arms if arm != "full"}


# What it comes to


def _verdicts(source: _Source) -> list[dict[str, Any]]:
    """Of each arm what is claimed, the differences behind it, and the AUC of length where that alone explains the choice."""
    by_length = {
        row["arm"]: row["value"] for row in _trust_rows(source)
        if row["figure"] == "length_auc" and explained_by_length(row["value"], source.length_warning)
    }  # fmt: skip
    claims = comparison.verdicts(source.differences, source.workspace.settings.selection.reference)
    behind = comparison.headline(source.differences).filter(pl.col("against").is_in(comparison.RIVALS)).to_dicts()
    return [
        {
            "arm": arm, "claim": f"{claims[arm][0].upper()}{claims[arm][1:]}.", "length_auc": by_length.get(arm),
            "differences": [_measured(row) for row in behind if row["arm"] == arm],
        }
        for arm in _in_order(source, claims)
    ]  # fmt: skip


def _measured(row: Mapping[str, Any]) -> str:
    return f"{row['task']} {row['metric']} against {row['against']}: {comparison.interval(row)}"


def _leaderboard(source: _Source) -> dict[str, Any] | None:
    board = source.store.query("FROM leaderboard ORDER BY task, metric, arm")
    main = comparison.main_rows(board).select("task", "metric").unique(maintain_order=True)
    rows, measures = board.to_dicts(), main.head(_SHOWN_MEASURES).rows()
    by_arm = {arm: {} for arm in _in_order(source, (row["arm"] for row in rows))}
    for row in rows:
        by_arm[row["arm"]][row["task"], row["metric"]] = row
    parts = [row for row in rows if (row["task"], row["metric"]) not in measures]
    return {"measures": measures, "arms": by_arm, "parts": parts} if rows else None


def _in_order(source: _Source, arms: Iterable[str]) -> list[str]:
    """The base model first, then the arms as the settings name them."""
    known = ["base", *source.workspace.settings.selection.arms]
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def _differences(source: _Source) -> dict[str, Any] | None:
    """Plots of what verdicts are about; the rest as a table."""
    shown = comparison.headline(source.differences).sort("against", "task", "metric", "arm").to_dicts()
    figures = [
        {"against": against, "measure": f"{task} {metric}", "figure": intervals([{**r, "name": r["arm"]} for r in each], "difference")}
        for (against, task, metric), each in groupby(shown, lambda r: (r["against"], r["task"], r["metric"]))
    ]  # fmt: skip
    rows = source.differences.to_dicts()
    return {"figures": figures, "rows": rows} if rows else None


def _costs(source: _Source) -> dict[str, Any] | None:
    scoring, training = source.named("scoring_costs"), source.named("training_costs")
    return {"scoring": scoring, "training": training} if scoring or training else None


# What was measured, and what was chosen


def _scores(source: _Source) -> list[dict[str, Any]]:
    return [
        _control(source, control, scores)
        for (control,), scores in source.scores.drop_nulls("contribution").group_by("control", maintain_order=True)
    ]


def _control(source: _Source, control: Any, scores: pl.DataFrame) -> dict[str, Any]:
    """A control's contributions. Beyond the outermost thousandth they count to the last bar."""
    values = scores["contribution"]
    arm = next((arm for arm in source.chosen if ranks_by(arm) == control), None)
    chosen = scores.join(source.chosen[arm], on="sample_id", how="semi")["contribution"] if arm else values.clear()
    low, high = np.quantile(values.to_numpy(), [0.001, 0.999]).tolist()
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    pool, taken = (
        np.histogram(np.clip(each.to_numpy(), edges[0], edges[-1]), edges)[0].tolist() for each in (values, chosen)
    )
    return {
        "control": control, "samples": values.len(), "mean": values.mean(), "median": values.median(),
        "low": values.quantile(0.05), "high": values.quantile(0.95), "positive": (values > 0).mean(),
        "estimated": int((scores["standard_error"] > 0).sum()),
        "figure": distribution(edges.tolist(), pool, taken, f"contribution ({control})", arm or ""),
    }  # fmt: skip


def _examples(source: _Source) -> list[dict[str, Any]]:
    """Of each arm some of the chosen, by rank, beside some of the rest, by contribution."""
    scored = {arm: rows["place"].drop_nulls().to_numpy() for arm, rows in source.chosen.items()}
    picked = {arm: (_some(places), _some(_rest(source, places))) for arm, places in scored.items()}
    places = sorted({place for both in picked.values() for each in both for part in each for place in part})
    samples = _sample_cards(source, places)
    return [
        {"arm": arm, "scored": len(scored[arm]), "chosen": source.chosen[arm].height, "rows": [
            {"chosen": [samples[p] for p in left], "rest": [samples[p] for p in right]}
            for left, right in zip(*both, strict=True)
        ]}
        for arm, both in picked.items()
    ]  # fmt: skip


def _rest(source: _Source, chosen: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    left = np.ones(source.ranking.height, bool)
    left[chosen] = False
    return np.flatnonzero(left)


def _some(places: "np.ndarray[Any, Any]") -> tuple[list[int], list[int], list[int]]:
    """The first, the middle ones and the last, none of them twice."""
    first, places = places[:_EXAMPLES], places[_EXAMPLES:]
    last, places = places[max(0, len(places) - _EXAMPLES) :], places[: max(0, len(places) - _EXAMPLES)]
    start = max(0, (len(places) - _EXAMPLES) // 2)
    return first.tolist(), places[start : start + _EXAMPLES].tolist(), last.tolist()


def _sample_cards(source: _Source, places: Sequence[int]) -> dict[int, dict[str, Any]]:
    ranked = source.ranking[places].to_dicts()
    texts = {row["sample_id"]: row for row in source.named("texts", ids=[row["sample_id"] for row in ranked])}
    by_arm = {arm: set(rows["place"]) for arm, rows in source.chosen.items()}
    return {
        row["place"]: {
            **row, "of": source.ranking.height, "arms": [arm for arm, chosen in by_arm.items() if row["place"] in chosen],
            **_shown(texts.get(row["sample_id"])),
        }
        for row in ranked
    }  # fmt: skip


def _shown(texts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The texts of a sample, cut; scores may outlive its line in the pool."""
    if texts is None:
        return {
            "file": "not in the pool any more",
            "row": "",
            "turns": 0,
            "instruction": ("", 0),
            "input": ("", 0),
            "response": ("", 0),
        }
    return {
        "file": texts["file"], "row": texts["row"], "turns": len(json.loads(texts["turns"] or "[]")),
        **{name: _cut(texts[name]) for name in ("instruction", "input", "response")},
    }  # fmt: skip


def _cut(text: str) -> tuple[str, int]:
    """The beginning of a text, and how many characters are left out."""
    begin, left_out = text[:_TEXT_CHARS], max(0, len(text) - _TEXT_CHARS)
    return f"{begin}…" if left_out else begin, left_out


def _coverage(source: _Source) -> dict[str, Any] | None:
    files = source.named("coverage", score_key=source.score_key)
    return {
        "files": files[:_SHOWN_ROWS], "not_shown": max(0, len(files) - _SHOWN_ROWS), "quarantine": source.named("quarantine"),
    } if files else None  # fmt: skip


# How far to trust it


def _trust_rows(source: _Source) -> list[dict[str, Any]]:
    """The figures of the subsets as they are now."""
    return source.rows(
        "FROM trust_figures WHERE list_contains($subsets, subset_id) ORDER BY figure, against",
        subsets=list(source.subsets.values()),
    )  # fmt: skip


def _trust(source: _Source) -> dict[str, Any]:
    """Figures by arm; how long the chosen are, which needs no figure; and which arms chose the same."""
    by_arm: dict[str, dict[str, list[dict[str, Any]]]] = {arm: {} for arm in source.arms if arm != "full"}
    for row in _trust_rows(source):
        by_arm.setdefault(row["arm"], {}).setdefault(row["figure"], []).append(row)
    overlap = {
        arm: {row["against"]: row["value"] for row in figures.get("arm_overlap", ())} for arm, figures in by_arm.items()
    }
    strata = {arm: {row["against"]: row for row in figures.get("stratum_share", ())} for arm, figures in by_arm.items()}
    return {
        "figures": {arm: figures for arm, figures in by_arm.items() if figures},
        "overlap": {arm: values for arm, values in overlap.items() if values},
        "strata": {arm: values for arm, values in strata.items() if values},
        "stratum_names": sorted({name for values in strata.values() for name in values}),
        "lengths": {arm: rows["n_tokens"].median() for arm, rows in source.chosen.items()},
        "scored": {arm: (rows["place"].count(), rows.height) for arm, rows in source.chosen.items()},
        "pool_length": source.lengths["n_tokens"].median(),
    } if source.chosen else {}  # fmt: skip


def _losses(source: _Source) -> dict[str, Any] | None:
    rows = source.named("losses", bins=_LOSS_BINS)
    lines = {
        arm: [(row["percent"], row["loss"]) for row in each] for arm, each in groupby(rows, lambda row: row["arm"])
    }
    return (
        {"figure": curves(lines, "share of the training done, %", "loss, nats per response token")} if lines else None
    )


def _lineage(source: _Source) -> dict[str, Any] | None:
    """The newest of every product, at most so many of each asset."""
    products = source.products
    shown = products.group_by("asset", maintain_order=True).head(_SHOWN_ROWS)
    return {"rows": shown.to_dicts(), "not_shown": products.height - shown.height} if products.height else None
