"""The sections of the report. Each is a function of the store, and is empty where its table is empty."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.evaluation import comparison
from icon_assets.core.evaluation.verdicts import interval, verdicts_of
from icon_assets.core.publish.plots import curves, distribution, intervals
from icon_assets.core.publish.report_source import Source
from icon_assets.core.selection.arm import ranks_by
from icon_assets.core.trust.warnings import explained_by_length

_BINS = 40
_LOSS_BINS = 100
_EXAMPLES = 2  # at each end and in the middle
_TEXT_CHARS = 500
_SHOWN_ROWS = 40
_SHOWN_MEASURES = 8


def verdict_section(source: Source) -> list[dict[str, Any]]:
    """For each arm the claim, the differences behind it, and the AUC of length if length alone explains the choice."""
    by_length = {
        row["arm"]: row["value"]
        for row in _trust_rows(source)
        if row["figure"] == "length_auc" and explained_by_length(row["value"], source.length_warning)
    }
    looks = comparison.last_look(source.store)
    claims = verdicts_of(source.differences, source.workspace.settings.selection.reference, looks)
    headline = comparison.headline(source.differences).to_dicts()
    behind = [row for row in headline if row["against"] in comparison.rivals_on(row["task"])]
    return [
        {
            "arm": arm,
            "claim": f"{claims[arm][0].upper()}{claims[arm][1:]}.",
            "length_auc": by_length.get(arm),
            "differences": [_measured(row) for row in behind if row["arm"] == arm],
        }
        for arm in _in_order(source, claims)
    ]


def _measured(row: Mapping[str, Any]) -> str:
    return f"{row['task']} {row['metric']} against {row['against']}: {interval(row)}"


def leaderboard_section(source: Source) -> dict[str, Any] | None:
    board = source.store.query("FROM leaderboard ORDER BY task, metric, arm")
    main = comparison.main_rows(board).select("task", "metric").unique(maintain_order=True)
    rows = board.to_dicts()
    measures = main.head(_SHOWN_MEASURES).rows()
    by_arm = {arm: {} for arm in _in_order(source, (row["arm"] for row in rows))}
    for row in rows:
        by_arm[row["arm"]][row["task"], row["metric"]] = row
    parts = [row for row in rows if (row["task"], row["metric"]) not in measures]
    return {"measures": measures, "arms": by_arm, "parts": parts} if rows else None


def _in_order(source: Source, arms: Iterable[str]) -> list[str]:
    """The base model first, then the arms as the settings name them."""
    known = ["base", *source.workspace.settings.selection.arms]
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def differences_section(source: Source) -> dict[str, Any] | None:
    """Plots of the headline differences; the rest as a table."""
    shown = comparison.headline(source.differences).sort("against", "task", "metric", "arm").to_dicts()
    figures = [
        {
            "against": against,
            "measure": f"{task} {metric}",
            "figure": intervals([{**r, "name": r["arm"]} for r in each], "difference"),
        }
        for (against, task, metric), each in groupby(shown, lambda r: (r["against"], r["task"], r["metric"]))
    ]
    rows = source.differences.to_dicts()
    return {"figures": figures, "rows": rows} if rows else None


def cost_section(source: Source) -> dict[str, Any] | None:
    scoring = source.named("scoring_costs")
    training = source.named("training_costs")
    return {"scoring": scoring, "training": training} if scoring or training else None


def scores_section(source: Source) -> list[dict[str, Any]]:
    return [
        _control(source, control, scores)
        for (control,), scores in source.scores.drop_nulls("contribution").group_by("control", maintain_order=True)
    ]


def _control(source: Source, control: Any, scores: pl.DataFrame) -> dict[str, Any]:
    """A control's contributions. The outermost thousandth on each side counts in the last bar."""
    values = scores["contribution"]
    arm = next((arm for arm in source.chosen if ranks_by(arm) == control), None)
    chosen = scores.join(source.chosen[arm], on="sample_id", how="semi")["contribution"] if arm else values.clear()
    low, high = np.quantile(values.to_numpy(), [0.001, 0.999]).tolist()
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    pool, taken = (
        np.histogram(np.clip(each.to_numpy(), edges[0], edges[-1]), edges)[0].tolist() for each in (values, chosen)
    )
    return {
        "control": control,
        "samples": values.len(),
        "mean": values.mean(),
        "median": values.median(),
        "low": values.quantile(0.05),
        "high": values.quantile(0.95),
        "positive": (values > 0).mean(),
        "estimated": int((scores["standard_error"] > 0).sum()),
        "figure": distribution(edges.tolist(), pool, taken, f"contribution ({control})", arm or ""),
    }


def examples_section(source: Source) -> list[dict[str, Any]]:
    """For each arm some of the chosen samples, by rank, and some of the others, by contribution."""
    scored = {arm: rows["place"].drop_nulls().to_numpy() for arm, rows in source.chosen.items()}
    picked = {arm: (_some(places), _some(_rest(source, places))) for arm, places in scored.items()}
    places = sorted({place for both in picked.values() for each in both for part in each for place in part})
    samples = _sample_cards(source, places)
    return [
        {
            "arm": arm,
            "scored": len(scored[arm]),
            "chosen": source.chosen[arm].height,
            "rows": [
                {"chosen": [samples[p] for p in left], "rest": [samples[p] for p in right]}
                for left, right in zip(*both, strict=True)
            ],
        }
        for arm, both in picked.items()
    ]


def _rest(source: Source, chosen: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    left = np.ones(source.ranking.height, bool)
    left[chosen] = False
    return np.flatnonzero(left)


def _some(places: "np.ndarray[Any, Any]") -> tuple[list[int], list[int], list[int]]:
    """The first, middle and last ones, each only once."""
    first = places[:_EXAMPLES]
    places = places[_EXAMPLES:]
    last = places[max(0, len(places) - _EXAMPLES) :]
    places = places[: max(0, len(places) - _EXAMPLES)]
    start = max(0, (len(places) - _EXAMPLES) // 2)
    return first.tolist(), places[start : start + _EXAMPLES].tolist(), last.tolist()


def _sample_cards(source: Source, places: Sequence[int]) -> dict[int, dict[str, Any]]:
    ranked = source.ranking[places].to_dicts()
    texts = {row["sample_id"]: row for row in source.named("texts", ids=[row["sample_id"] for row in ranked])}
    by_arm = {arm: set(rows["place"]) for arm, rows in source.chosen.items()}
    return {
        row["place"]: {
            **row,
            "of": source.ranking.height,
            "arms": [arm for arm, chosen in by_arm.items() if row["place"] in chosen],
            **_shown(texts.get(row["sample_id"])),
        }
        for row in ranked
    }


def _shown(texts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The texts of a sample, cut. A sample that left the pool may still have scores."""
    if texts is None:
        return {
            "file": "no longer in the pool",
            "row": "",
            "turns": 0,
            "instruction": ("", 0),
            "input": ("", 0),
            "response": ("", 0),
        }
    return {
        "file": texts["file"],
        "row": texts["row"],
        "turns": len(json.loads(texts["turns"] or "[]")),
        **{name: _cut(texts[name]) for name in ("instruction", "input", "response")},
    }


def _cut(text: str) -> tuple[str, int]:
    """The beginning of a text, and the number of characters left out."""
    begin = text[:_TEXT_CHARS]
    left_out = max(0, len(text) - _TEXT_CHARS)
    return f"{begin}…" if left_out else begin, left_out


def coverage_section(source: Source) -> dict[str, Any] | None:
    files = source.named("coverage", score_key=source.score_key)
    return (
        {
            "files": files[:_SHOWN_ROWS],
            "not_shown": max(0, len(files) - _SHOWN_ROWS),
            "quarantine": source.named("quarantine"),
        }
        if files
        else None
    )


def _trust_rows(source: Source) -> list[dict[str, Any]]:
    """The figures of the current subsets."""
    return source.rows(
        "FROM trust_figures WHERE list_contains($subsets, subset_id) ORDER BY figure, against",
        subsets=list(source.subsets.values()),
    )


def trust_section(source: Source) -> dict[str, Any]:
    """Figures by arm, lengths of the chosen samples, and overlaps between arms."""
    by_arm: dict[str, dict[str, list[dict[str, Any]]]] = {arm: {} for arm in source.arms if arm != "full"}
    for row in _trust_rows(source):
        by_arm.setdefault(row["arm"], {}).setdefault(row["figure"], []).append(row)
    overlap = {
        arm: {row["against"]: row["value"] for row in figures.get("arm_overlap", ())} for arm, figures in by_arm.items()
    }
    strata = {arm: {row["against"]: row for row in figures.get("stratum_share", ())} for arm, figures in by_arm.items()}
    return (
        {
            "figures": {arm: figures for arm, figures in by_arm.items() if figures},
            "overlap": {arm: values for arm, values in overlap.items() if values},
            "strata": {arm: values for arm, values in strata.items() if values},
            "stratum_names": sorted({name for values in strata.values() for name in values}),
            "lengths": {arm: rows["n_tokens"].median() for arm, rows in source.chosen.items()},
            "scored": {arm: (rows["place"].count(), rows.height) for arm, rows in source.chosen.items()},
            "pool_length": source.lengths["n_tokens"].median(),
        }
        if source.chosen
        else {}
    )


def losses_section(source: Source) -> dict[str, Any] | None:
    rows = source.named("losses", bins=_LOSS_BINS)
    lines = {
        arm: [(row["percent"], row["loss"]) for row in each] for arm, each in groupby(rows, lambda row: row["arm"])
    }
    return (
        {"figure": curves(lines, "share of the training done, %", "loss, nats per response token")} if lines else None
    )


def lineage_section(source: Source) -> dict[str, Any] | None:
    """The newest event of every product, with a limit for each asset."""
    products = source.products
    shown = products.group_by("asset", maintain_order=True).head(_SHOWN_ROWS)
    return {"rows": shown.to_dicts(), "not_shown": products.height - shown.height} if products.height else None
