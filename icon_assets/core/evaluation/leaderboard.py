"""The leaderboard as tables for people: one row per arm."""

import polars as pl

from icon_assets.core.evaluation import comparison
from icon_assets.core.evaluation.verdicts import interval


def wide_board(board: pl.DataFrame) -> pl.DataFrame:
    """One row per arm: `mean ± spread` of the headline metrics, then samples, training and scoring cost (in 10^12
    operations)."""
    mean, spread = (pl.col(name).round_sig_figs(4).cast(pl.String) for name in ("mean", "sd_over_seeds"))
    cell = pl.when(pl.col("sd_over_seeds").is_null()).then(mean).otherwise(pl.format("{} ± {}", mean, spread))
    table = (
        comparison.main_rows(board)
        .with_columns(name=pl.format("{} {}", "task", "metric"), cell=cell)
        .pivot("name", index=["arm", "n_seeds", *_SHOWN_COSTS], values="cell", sort_columns=True)
    )
    counts = [column for column in _SHOWN_COSTS if not column.endswith("_flops")]
    teraflop = [
        (pl.col(column) / 1e12).round_sig_figs(4).alias(column.replace("_flops", "_tflop"))
        for column in _SHOWN_COSTS
        if column.endswith("_flops")
    ]
    return table.select("arm", "n_seeds", pl.exclude("arm", "n_seeds", *_SHOWN_COSTS), *counts, *teraflop).sort("arm")


def wide_differences(differences: pl.DataFrame, against: str) -> pl.DataFrame:
    """One row per arm: each headline metric's difference to `against` with its interval, and the verdict where there is
    one."""
    told = pl.when(pl.col("verdict") == comparison.OPEN).then(pl.lit("")).otherwise(pl.format(" ({})", "verdict"))
    rows = comparison.headline(differences).filter(pl.col("against") == against)
    cells = pl.Series([interval(row) for row in rows.to_dicts()], dtype=pl.String)
    return (
        rows.with_columns(name=pl.format("{} {}", "task", "metric"), cell=cells + rows.select(told).to_series())
        .pivot("name", index="arm", values="cell", sort_columns=True)
        .sort("arm")
    )


COSTS = (
    "n_samples",
    "training_tokens",
    "training_steps",
    "training_seconds",
    "scoring_tokens",
    "scoring_seconds",
    "scoring_flops",
    "training_flops",
    "total_flops",
)
_SHOWN_COSTS = ("n_samples", "training_tokens", "scoring_flops", "training_flops", "total_flops")
