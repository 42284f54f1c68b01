"""From stored pairs to scores, without a forward pass: SQL over the pair table (sql/influence.sql,
sql/contribution.sql), and estimates for samples that were scored on only some of the probes (budgeted mode)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.probe_model import Calibration, ProbeModel
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings


def control_seeds(settings: ControlSettings) -> list[int]:
    """The seeds whose random contexts are averaged."""
    return [settings.seed + draw for draw in range(settings.draws)]


def control_lengths(key: ScoreKey, settings: ControlSettings) -> list[int]:
    """The lengths at which `random_tokens` is measured: the lengths of the settings, cut to the longest possible
    context."""
    return sorted({min(length, key.max_context_tokens) for length in settings.lengths})


@dataclass(frozen=True)
class Pilot:
    """Randomly drawn samples, of any shard, that were scored on every probe.

    Attributes:
        sample_ids: ids of these samples.
        influences: rows of sample_id, probe_id, control, x.
        calibrations: the calibration of the errors of estimates, by control.
    """

    sample_ids: Sequence[str]
    influences: pl.DataFrame
    calibrations: Mapping[str, Calibration]

    @classmethod
    def learn(cls, sample_ids: Sequence[str], influences: pl.DataFrame, probe_tokens: Mapping[str, int]) -> "Pilot":
        """`influences`: of these samples, under every control. `probe_tokens`: also used for the order of the
        probes."""
        calibrations = {}
        for (control,), table in influences.group_by("control"):
            _, probe_ids, x = matrix(table)
            calibrations[control] = Calibration(x, np.array([probe_tokens[each] for each in probe_ids], float))
        return cls(sample_ids, influences, calibrations)


def contributions(
    store: Store,
    key: ScoreKey,
    shard: str,
    settings: ControlSettings,
    pilot: "Pilot | None" = None,
    ceiling: str | None = None,
) -> pl.DataFrame:
    """Rows of the table `sample_scores` for one shard.

    Args:
        pilot: given where some samples lack probes. A sample's missing influences are predicted from its known ones, as
            learned from the pilot and the complete samples of the shard.
        ceiling: only samples whose ids are below it are scored directly; None: all (see `digests.share_ceiling`).
    """
    scores = store.query(
        sql_text("influence.sql") + sql_text("contribution.sql"), _parameters(key, shard, settings, (), ceiling)
    )
    n_probes = store.query("SELECT count(*) FROM probes").item()
    if pilot and (scores["n_probes"] < n_probes).any():
        table = influences(store, key, shard, settings, pilot.sample_ids, ceiling)
        parts = [
            _estimated(rows, table.filter(pl.col("control") == control), pilot, str(control))
            for (control,), rows in scores.group_by("control", maintain_order=True)
        ]
        scores = pl.concat(parts).sort("control", "contribution", "sample_id", descending=[False, True, False])
    return scores.with_columns(significance=significance(pl.col("contribution")))


def influences(
    store: Store,
    key: ScoreKey,
    shard: str | None,
    settings: ControlSettings,
    samples: Sequence[str],
    ceiling: str | None = None,
) -> pl.DataFrame:
    """Influence x of the shard's samples and of these: rows of sample_id, probe_id, control, x."""
    query = sql_text("influence.sql") + "SELECT sample_id, probe_id, control, x FROM influence"  # noqa: S608  (our own text)
    return store.query(query, _parameters(key, shard, settings, samples, ceiling))


def log_gains(
    store: Store,
    key: ScoreKey,
    settings: ControlSettings,
    control: str,
    sample_ids: Sequence[str],
    probe_ids: Sequence[str],
) -> np.ndarray:
    """Nats per response token that each sample saves against a control, on each probe: the log of the ratio of
    perplexities. [samples, probes] of float32; NaN where a pair is not stored."""
    query = sql_text("influence.sql") + "SELECT sample_id, probe_id, gain FROM influence"  # noqa: S608  (our own text)
    only = settings.model_copy(update={"kinds": (control,)})
    gains = np.full((len(sample_ids), len(probe_ids)), np.nan, np.float32)
    for shard in store.query("SELECT shard FROM shards ORDER BY shard")["shard"]:
        rows = placed(store.query(query, _parameters(key, shard, only, (), None)), sample_ids, probe_ids)
        gains[rows["sample"].to_numpy(), rows["probe"].to_numpy()] = rows["gain"].to_numpy()
    return gains


def placed(pairs: pl.DataFrame, sample_ids: Sequence[str], probe_ids: Sequence[str]) -> pl.DataFrame:
    """Pairs of these samples and probes with their places in the lists, as `sample` and `probe`."""
    samples = pl.DataFrame({"sample_id": sample_ids}, schema={"sample_id": pl.String}).with_row_index("sample")
    probes = pl.DataFrame({"probe_id": probe_ids}, schema={"probe_id": pl.String}).with_row_index("probe")
    return pairs.join(samples, on="sample_id").join(probes, on="probe_id")


def _parameters(
    key: ScoreKey, shard: str | None, settings: ControlSettings, samples: Sequence[str], ceiling: str | None
) -> dict[str, Any]:
    return {
        "score_key": key.value,
        "shard": shard,
        "samples": list(samples),
        "controls": list(settings.kinds),
        "seeds": control_seeds(settings),
        "lengths": control_lengths(key, settings),
        "ceiling": ceiling,
    }


def matrix(table: pl.DataFrame) -> tuple[list[str], list[str], np.ndarray]:
    """Influences of one control as sample ids, probe ids, and [samples, probes]; NaN where a pair was not scored."""
    wide = table.pivot(on="probe_id", index="sample_id", values="x").sort("sample_id")
    probe_ids = sorted(column for column in wide.columns if column != "sample_id")
    return wide["sample_id"].to_list(), probe_ids, wide.select(probe_ids).to_numpy()


def _estimated(scores: pl.DataFrame, table: pl.DataFrame, pilot: Pilot, control: str) -> pl.DataFrame:
    """The scores of one control, with those of incomplete samples replaced by estimates of the model of the probes."""
    sample_ids, _, x = matrix(table)
    seen = ~np.isnan(x)
    drawn = set(pilot.sample_ids)
    complete = seen.all(axis=1)
    random = complete & np.array([sample_id in drawn for sample_id in sample_ids])
    model = ProbeModel.fit(x[complete], x[random])
    patterns, of = np.unique(seen, axis=0, return_inverse=True)
    value = np.zeros(len(sample_ids))
    error = np.zeros(len(sample_ids))
    for index, pattern in enumerate(patterns):
        rows = of == index
        value[rows], promised = model.estimate(pattern, x[np.ix_(rows, pattern)])
        error[rows] = promised and promised * pilot.calibrations[control].inflation(int(pattern.sum()))
    estimates = pl.DataFrame({"sample_id": sample_ids, "contribution": value, "standard_error": error})
    replaced = scores.drop("contribution", "standard_error").join(estimates, on="sample_id", how="left")
    return replaced.select(scores.columns)


def significance(x: pl.Expr) -> pl.Expr:
    """2 / (1 + exp(-50 x)) - 1 of a contribution, clamped beyond +-0.5 (method): monotone, with ties at the top."""
    return pl.when(x > 0.5).then(1.0).when(x < -0.5).then(-1.0).otherwise(2 / (1 + (-50 * x).exp()) - 1)
