"""Which control contexts scoring needs, which of them are not stored yet, and what probes are worth without context."""

from collections.abc import Iterable, Sequence

import polars as pl

from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.contribution import control_lengths, control_seeds
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings

Control = tuple[str, int, int]  # kind, seed, length in the unit of the kind
NO_CONTEXT: Control = ("none", 0, 0)
CONTROL_KEY = ("score_key", "probe_id", "control", "seed", "length")


def controls_for(
    key: ScoreKey, settings: ControlSettings, tokens: Iterable[int], chars: Iterable[int]
) -> list[Control]:
    """The control contexts, besides no context, that samples of these lengths are compared with."""
    seeds = control_seeds(settings)
    wanted = list[Control]()
    if "random_tokens" in settings.kinds:
        wanted += [
            ("random_tokens", seed, n)
            for n in knots(control_lengths(key, settings), sorted(set(tokens)))
            for seed in seeds
        ]
    if "random_chars" in settings.kinds:
        wanted += [("random_chars", seed, n) for n in sorted(set(chars)) for seed in seeds]
    return wanted


def missing_controls(
    store: Store, key: ScoreKey, wanted: Sequence[Control], probe_ids: Sequence[str]
) -> dict[Control, list[int]]:
    """For each control the probes (indices into `probe_ids`) that are not stored with it yet. Complete controls are not
    listed."""
    stored = set(
        store.query(
            "SELECT probe_id, control, seed, length FROM control_scores WHERE score_key = $score_key",
            {"score_key": key.value},
        ).iter_rows()
    )
    needs = {c: [i for i, probe_id in enumerate(probe_ids) if (probe_id, *c) not in stored] for c in wanted}
    return {control: probes for control, probes in needs.items() if probes}


def knots(measured: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The lengths at which `random_tokens` must be measured to interpolate at `lengths`."""
    needed: set[int] = set()
    for length in lengths:
        below = [knot for knot in measured if knot <= length]
        above = [knot for knot in measured if knot >= length]
        needed |= {(below or above)[-1 if below else 0], (above or below)[0 if above else -1]}
    return sorted(needed)


def baseline(store: Store, key: ScoreKey) -> pl.DataFrame:
    """The probes without context, by id: probe_id, stratum, nll_sum (nats), n_tokens, truncated."""
    return store.query(
        """
        SELECT probe_id, stratum, nll_sum, n_tokens, truncated FROM control_scores JOIN probes USING (probe_id)
        WHERE score_key = $score_key AND control = 'none' ORDER BY probe_id
        """,
        {"score_key": key.value},
    )


def perplexity_by_stratum(frame: pl.DataFrame) -> pl.DataFrame:
    """Of such rows: probes, median and highest perplexity."""
    perplexity = (pl.col("nll_sum") / pl.col("n_tokens")).exp()
    return (
        frame.group_by("stratum")
        .agg(probes=pl.len(), median_perplexity=perplexity.median(), highest_perplexity=perplexity.max())
        .sort("stratum")
    )
