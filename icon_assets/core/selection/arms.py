"""The arms: each is one function that ranks the pool by its own criterion.

A new arm is one function here, registered by its name, and one line in the settings. A ranking does not depend on how
much of it is taken, so that a sample chosen at one fraction is chosen at every larger one. Ties are broken by
sample_id.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.selection.arm import IN_TURN, Order, arm, arm_and_draw, asks_in_turn, rank
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.selection.per_probe import BM25, COSINE
from icon_assets.core.selection.turns import by_stratum, name_in_turn, shares, take_in_turn
from icon_assets.settings import SelectionSettings

# of length_matched: narrow, but with enough samples to draw from
_BIN_SAMPLES = 20
_MOST_BINS = 256


Take = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _ranked(pool: Candidates, score: pl.Expr, descending: bool = True) -> pl.DataFrame:
    """The samples that have a score, by it."""
    scored = pool.samples.select("sample_id", score=score.cast(pl.Float64)).drop_nulls("score")
    return scored.sort("score", "sample_id", descending=[descending, False])


def _drawn(pool: Candidates, *purpose: str) -> pl.DataFrame:
    """The samples in a random order, in which the place of each does not depend on the rest of the pool."""
    purpose = (*purpose, *([f"draw {pool.draw}"] if pool.draw else []))
    keys = [draw_key(pool.settings.seed, *purpose, sample_id) for sample_id in pool.samples["sample_id"]]
    return pool.samples.with_columns(pl.Series("key", keys)).sort("key").drop("key")


@arm("full", "every sample of the pool")
def _full(pool: Candidates) -> pl.DataFrame:
    return pool.samples.sort("sample_id").select("sample_id", score=pl.lit(None, pl.Float64))


@arm("random", "drawn at random; the draw of a sample does not depend on the rest of the pool", drawn=True)
def _random(pool: Candidates) -> pl.DataFrame:
    return _drawn(pool).select("sample_id", score=pl.lit(None, pl.Float64))


@arm(
    "length_matched",
    "drawn at random, with the lengths of the samples that another arm chose",
    settings=("reference",),
    drawn=True,
)
def _length_matched(pool: Candidates) -> pl.DataFrame:
    """For each sample of the reference, best first, draw one from the same narrow bin of token lengths, without
    replacement.

    The draw may be that sample itself, because the comparison is about the choice within a length.
    """
    lengths = pool.samples["n_tokens"].to_numpy()
    bins = min(_MOST_BINS, max(1, len(lengths) // _BIN_SAMPLES))
    edges = np.quantile(lengths, np.arange(1, bins) / bins) if len(lengths) else lengths
    binned = pool.samples.select("sample_id", bin=pl.Series(np.searchsorted(edges, lengths, side="right")))
    nth = pl.int_range(pl.len()).over("bin")
    drawn = _drawn(pool, "length_matched").select("sample_id").join(binned, on="sample_id", maintain_order="left")
    wanted = rank(pool.settings.reference, pool).select("sample_id").join(binned, on="sample_id", maintain_order="left")
    matched = wanted.select("bin", nth=nth).join(
        drawn.with_columns(nth=nth), on=["bin", "nth"], how="left", maintain_order="left"
    )
    return matched.select("sample_id", score=pl.lit(None, pl.Float64))


@arm("longest", "longest response, in characters")
def _longest(pool: Candidates) -> pl.DataFrame:
    return _ranked(pool, pl.col("n_response_chars"))


@arm(
    "rds",
    "most similar to a probe, the probes in turn",
    per_probe=COSINE,
    tables=("sample_features", "probe_features"),
    settings=IN_TURN,
)
def _rds(pool: Candidates) -> pl.DataFrame:
    return _by_values(pool, COSINE, pool.settings.aggregate != "mean")


@arm("bm25", "prompt with the words of a probe's prompt, the probes in turn", per_probe=BM25, settings=IN_TURN)
def _bm25(pool: Candidates) -> pl.DataFrame:
    return _by_values(pool, BM25, pool.settings.aggregate != "mean")


@arm("perplexity", "response of middling perplexity", tables=("sample_features",))
def _perplexity(pool: Candidates) -> pl.DataFrame:
    """From the median outwards. Bottom, middle and top are all in use, and the best one depends on the corpus (arXiv
    2309.04564, 2405.20541). The bottom is text that the model would write anyway. The top is short answers and text
    that it can't read.
    """
    ranked = _ranked(pool, pl.col("perplexity"))
    middle = (pl.int_range(pl.len()) - (pl.len() - 1) / 2).abs()
    return ranked.sort(middle, "sample_id")


@arm("ifd", "highest IFD below 1: the prompt helps, but little", tables=("sample_features",))
def _ifd(pool: Candidates) -> pl.DataFrame:
    """PPL(response | prompt) / PPL(response), arXiv 2308.12032. From 1 on, prompt and response do not fit together.
    Such samples come last, in ascending order."""
    below = pool.samples.filter(pl.col("ifd") < 1)
    beyond = pool.samples.filter(pl.col("ifd") >= 1)
    halves = [(below, True), (beyond, False)]
    return pl.concat([_ranked(Candidates(half, pool.settings), pl.col("ifd"), first) for half, first in halves])


def _by_contribution(control: str) -> Order:
    def order(pool: Candidates) -> pl.DataFrame:
        if pool.settings.aggregate == "in_turn":
            return _by_values(pool, control, in_turn=True)
        return _ranked(pool, pl.col(control))

    return order


_TOP_OF = {
    "none": ("icon", "no context"),
    "random_tokens": ("rico", "random tokens"),
    "random_chars": ("rico_chars", "random characters"),
    PEERS: ("icon_peers", "samples of its length"),
}
for _control, (_name, _context) in _TOP_OF.items():
    arm(_name, f"highest contribution against {_context}", control=_control, settings=IN_TURN)(
        _by_contribution(_control)
    )


@arm(
    "icon_in_turn",
    "highest log gain against no context for a probe, the probes in turn",
    control="none",
    settings=("turns",),
)
def _icon_in_turn(pool: Candidates) -> pl.DataFrame:
    """Per probe, the log gain ranks samples as the perplexity ratio does. A mean over the probes of a stratum is of log
    gains, because ratios let the probes with the most surprising responses dominate."""
    return _by_values(pool, "none", in_turn=True)


@arm("lowest", "lowest contribution against no context", control="none")
def _lowest(pool: Candidates) -> pl.DataFrame:
    return _ranked(pool, pl.col("none"), descending=False)


@arm("icon_selector", "highest predicted contribution", tables=("predicted_scores",))
def _icon_selector(pool: Candidates) -> pl.DataFrame:
    return _ranked(pool, pl.col("predicted"))


@arm("icon_stratified", "highest contribution within its class of lengths", control="none", settings=("length_strata",))
def _icon_stratified(pool: Candidates) -> pl.DataFrame:
    """Classes of equal size by token length. A sample's place is its rank within its class, divided by the size of the
    class in the pool, so that every prefix of the ranking has the classes in the pool's proportions."""
    lengths = pool.samples["n_tokens"].to_numpy()
    strata = pool.settings.length_strata
    edges = np.quantile(lengths, np.arange(1, strata) / strata) if len(lengths) else lengths
    classed = pool.samples.with_columns(stratum=pl.Series(np.searchsorted(edges, lengths, side="right")))
    classed = classed.with_columns(size=pl.len().over("stratum"))
    ranked = _ranked(pool, pl.col("none")).join(
        classed.select("sample_id", "stratum", "size"), on="sample_id", maintain_order="left"
    )
    place = (pl.int_range(pl.len()).over("stratum") + 0.5) / pl.col("size")
    return ranked.with_columns(place=place).sort("place", "sample_id").select("sample_id", "score")


@arm(
    "combined",
    "best by several rankings together, the probes in turn, prompt and response fitting together",
    tables=("sample_features",),
    settings=("turns", "combined"),
)
def _combined(pool: Candidates) -> pl.DataFrame:
    """The mean place in the rankings of `selection.combined`, for each probe. Samples that one of them can't rank are
    left out. Those with an IFD from `ifd_below` on come last."""
    rankings = [_places(pool, name) for name in pool.settings.combined.rankings]
    limit = pool.settings.combined.ifd_below
    if limit is None:
        return _in_turn(pool, np.mean(rankings, axis=0))
    fits = pl.col("ifd") < limit
    groups = (pool.samples.filter(fits), pool.samples.filter(~fits))
    return pl.concat([_in_turn(replace(pool, samples=group), np.mean(rankings, axis=0)) for group in groups])


@arm("oracle", "drawn at random among the samples of the probes' strata", drawn=True)
def _oracle(pool: Candidates) -> pl.DataFrame:
    """The bound that a choice for a target is compared with, where the pool names the strata that the probes have. All
    other samples come after them."""
    values = pool.probe_values()
    known = values.strata.select("sample_id", same=pl.col("stratum").is_in(values.probes["stratum"].to_list()))
    if not known["same"].any():
        names = ", ".join(sorted(set(values.probes["stratum"]))[:5])
        raise IconError(f"arm oracle: no sample of the pool has a stratum of the probes ({names}); take the arm out")
    drawn = _drawn(pool, "oracle").join(known, on="sample_id", how="left", maintain_order="left")
    return drawn.sort("same", descending=True, nulls_last=True, maintain_order=True).select(
        "sample_id", score=pl.lit(None, pl.Float64)
    )


def _by_values(pool: Candidates, kind: str, in_turn: bool) -> pl.DataFrame:
    """A ranking by the values of samples for single probes: taken in turn, or by their mean."""
    values = pool.probe_values().values(kind)
    if in_turn:
        return _in_turn(pool, values, take=_taking(kind, pool))
    means = pl.DataFrame({"sample_id": pool.probe_values().sample_ids, "mean": values.mean(axis=1)})
    scored = pool.samples.join(means.fill_nan(None), on="sample_id", how="left", maintain_order="left")
    return _ranked(replace(pool, samples=scored), pl.col("mean"))


def _taking(kind: str | None, pool: Candidates) -> Take:
    return name_in_turn if kind == COSINE and pool.settings.turns == "probes" else take_in_turn


def _in_turn(
    pool: Candidates, values: np.ndarray, probes: np.ndarray | None = None, take: Take = take_in_turn
) -> pl.DataFrame:
    """The candidates in the order in which these probes take them, or all, or their strata.

    Args:
        values: [samples of `probe_values`, probes].
    """
    source = pool.probe_values()
    rows = np.searchsorted(source.sample_ids, pool.samples["sample_id"].sort().to_numpy())
    asked = np.arange(values.shape[1]) if probes is None else probes
    takers = values[np.ix_(rows, asked)]
    if pool.settings.turns == "strata":
        takers = by_stratum(takers, source.probes["stratum"].gather(asked).to_list())
    taken, taker = take(takers)
    ids = np.array(source.sample_ids)[rows[taken]]
    return pl.DataFrame({"sample_id": ids.tolist(), "score": takers[taken, taker].astype(float)})


def _places(pool: Candidates, name: str) -> np.ndarray:
    """[samples of `probe_values`, probes] from 1 (best) down to near 0; NaN where the arm can't rank a sample."""
    own, _ = arm_and_draw(name)
    source = pool.probe_values()
    if "turns" in own.settings and own.per_probe:
        return shares(source.values(own.per_probe))
    ranking = rank(name, pool)
    places = np.full((len(source.sample_ids), 1), np.nan)
    rows = np.searchsorted(source.sample_ids, ranking["sample_id"].to_numpy())
    places[rows, 0] = 1 - np.arange(ranking.height) / max(1, ranking.height)
    return np.broadcast_to(places, (len(places), source.probes.height))


def turn_values(name: str, pool: Candidates) -> np.ndarray | None:
    """The values by which the probes take samples in turn in this arm, [samples, probes]; None where they do not."""
    own, _ = arm_and_draw(name)
    if not asks_in_turn(own, pool.settings):
        return None
    if own.per_probe:
        return pool.probe_values().values(own.per_probe)
    return np.mean([_places(pool, each) for each in pool.settings.combined.rankings], axis=0)


def taken_by(name: str, pool: Candidates, values: np.ndarray, probes: np.ndarray) -> pl.DataFrame:
    """The ranking of an arm in turn if only these probes took samples. `values`: from `turn_values`."""
    return _in_turn(pool, values, probes, _taking(arm_and_draw(name)[0].per_probe, pool))


def is_top_of(name: str, control: str, settings: SelectionSettings) -> bool:
    """Whether the arm takes the samples of highest contribution against this control, and no others."""
    return _TOP_OF[control][0] == name and settings.aggregate != "in_turn"
