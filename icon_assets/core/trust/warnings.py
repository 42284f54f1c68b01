"""Trust figures in words: one line for each figure that a reader should know about."""

from typing import Any

import polars as pl

Z_95 = 1.959964  # of an interval of 95 %
# Limits beyond which a figure gets a warning.
_FAR_FROM_CHANCE = 3  # standard errors
_SHAKY = 0.7
_REPEATED = 0.05
_SAME = 0.9
_TWICE = 2


def summary(figures: pl.DataFrame) -> pl.DataFrame:
    """One row per arm, with the least favourable value of each figure."""
    worst = {
        "length AUC": _where("length_auc", "tokens"),
        "response AUC": _where("length_auc", "response characters"),
        "rank ~ length": _where("length_spearman"),
        "nested": _where("nestedness").min(),
        "kept by other probes": _where("probe_overlap"),
        "kept by other contexts": _where("control_overlap"),
        "near-duplicates": _where("near_duplicates").max(),
        "in random": _where("arm_overlap", "random"),
    }
    return figures.group_by("arm").agg(**{name: value.max() for name, value in worst.items()}).sort("arm")


def _where(figure: str, against: str | None = None) -> pl.Expr:
    of_figure = pl.col("figure") == figure
    return pl.col("value").filter(of_figure if against is None else of_figure & (pl.col("against") == against))


def warnings(figures: pl.DataFrame, length_limit: float) -> list[str]:
    """Warnings for a reader of these figures, one line each.

    Args:
        figures: rows of the view `trust_figures`, of any arms.
    """
    lines = [_warning(row, length_limit) for row in figures.iter_rows(named=True)]
    return [line for line in lines if line]


def _warning(row: dict[str, Any], length_limit: float) -> str:
    arm = row["arm"]
    against = row["against"]
    value = row["value"]
    if row["figure"] == "length_auc" and explained_by_length(value, length_limit):
        longer = "longer" if value > 0.5 else "shorter"
        return (
            f"{arm}: chosen samples are {longer} ({against}): length alone separates them from the rest with AUC "
            f"{max(value, 1 - value):.2f}"
        )
    if row["figure"] == "nestedness" and value < 1:
        return f"{arm}: only {value:.0%} of what it chooses at one size is chosen at the next larger one ({against})"
    if row["figure"] == "probe_overlap" and value < _SHAKY:
        chance = row["detail"].split(";")[0]
        return f"{arm}: with {against} {1 - value:.0%} of its samples would change ({chance}); raise probes.count"
    if row["figure"] == "control_overlap" and value < _SHAKY:
        return (
            f"{arm}: with other random contexts {1 - value:.0%} of its samples would change ({row['detail']}); "
            "raise controls.draws"
        )
    if row["figure"] == "near_duplicates" and value > _REPEATED:
        return f"{arm}: {value:.0%} of its samples nearly repeat a better one ({against}); see selection.diversity"
    if row["figure"] == "arm_overlap" and value > _SAME and against != "full" and arm != "full":
        return f"{arm}: {value:.0%} of its samples are also in {against}: a comparison of the two says little"
    if row["figure"] == "stratum_share" and _is_apart(row):
        return f"{arm}: {value:.0%} of its samples are {against}; their share of the pool is {row['detail'].split()[0]}"
    return ""


def explained_by_length(value: float, limit: float) -> bool:
    """Whether an AUC of length is beyond the limit, in either direction."""
    return abs(value - 0.5) > limit - 0.5


def _is_apart(row: dict[str, Any]) -> bool:
    """Whether a stratum has more than twice its share or less than half, and not by chance."""
    share = float(row["detail"].split()[0])
    far = abs(row["value"] - share) > _FAR_FROM_CHANCE / Z_95 * (row["high"] - share)
    return far and not share / _TWICE <= row["value"] <= share * _TWICE
