"""The arms: each is one function that ranks the pool by its own criterion.

A new arm is one function here, registered by its name, and one line in the settings. A ranking does not depend on how
much of it is taken, so that a sample chosen at one fraction is chosen at every larger one. Ties are broken by
sample_id.
"""

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.features.similarity import round_robin
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.selection.arm import Order, arm, rank
from icon_assets.core.selection.candidates import Candidates

# of length_matched: narrow, but with enough samples to draw from
_BIN_SAMPLES = 20
_MOST_BINS = 256


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


@arm("rds", "most similar to a probe, the probes in turn", tables=("sample_features", "probe_features"))
def _rds(pool: Candidates) -> pl.DataFrame:
    return round_robin(pool.vectors()).join(pool.samples.select("sample_id"), on="sample_id", maintain_order="left")


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


def _by_contribution(control: str, descending: bool = True) -> Order:
    return lambda pool: _ranked(pool, pl.col(control), descending)


_TOP_OF = {
    "none": ("icon", "no context"),
    "random_tokens": ("rico", "random tokens"),
    "random_chars": ("rico_chars", "random characters"),
    PEERS: ("icon_peers", "samples of its length"),
}
for _control, (_name, _context) in _TOP_OF.items():
    arm(_name, f"highest contribution against {_context}", control=_control)(_by_contribution(_control))
arm("lowest", "lowest contribution against no context", control="none")(_by_contribution("none", descending=False))


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


def is_top_of(name: str, control: str) -> bool:
    """Whether the arm takes the samples of highest contribution against this control, and no others."""
    return _TOP_OF[control][0] == name
