"""Arms: each is one function that ranks the pool by its own reason; how much of that is taken is the same for all of them.

A further arm is one function here, registered by its name, and one line in the settings. A ranking does not depend on how
much of it is taken, so that what is chosen at one fraction is chosen at every larger one. Ties are broken by sample_id.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import digest, draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.features.similarity import Sieve, round_robin
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.selection.candidates import TOKENS, Candidates
from icon_assets.settings import SelectionSettings

Order = Callable[[Candidates], pl.DataFrame]
_BIN_SAMPLES, _MOST_BINS = 20, 256  # of length_matched: narrow, yet with something to draw from
_SIEVED_AT_ONCE = 4_096
# Made only when an arm of the settings ranks by them.
ON_DEMAND = ("sample_features", "probe_features", "selector", "predicted_scores")


@dataclass(frozen=True)
class Arm:
    """A way to rank the pool.

    Attributes:
        order: makes of the candidates rows of sample_id and score, best first: all that it can rank.
        control: whose contributions it ranks by, if any.
        tables: of the store, that it ranks by besides.
        settings: of `selection`, that it depends on besides what all arms do.
        drawn: whether chance ranks. Then each training seed has a draw of its own (`draws`): of one draw alone nobody could
            tell whether another would have done as well.
    """

    name: str
    description: str
    order: Order
    control: str | None
    tables: tuple[str, ...]
    settings: tuple[str, ...]
    drawn: bool


@dataclass(frozen=True)
class Subset:
    """The choice of one arm: `rows` has sample_id, rank (from 1), score (null where the arm has none) and reason.

    `skipped`: samples that were passed over because a better one is nearly the same.
    """

    arm: str
    subset_id: str
    rows: pl.DataFrame
    skipped: int = 0


_ARMS: dict[str, Arm] = {}


def arm(
    name: str, description: str, *, control: str | None = None, tables: tuple[str, ...] = (), settings: tuple[str, ...] = (),
    drawn: bool = False,
) -> Callable[[Order], Order]:  # fmt: skip
    """Register an arm; see `Arm`."""

    def register(order: Order) -> Order:
        _ARMS[name] = Arm(name, description, order, control, tables, settings, drawn)
        return order

    return register


def draws(name: str, seeds: Sequence[int]) -> list[str]:
    """The subsets of an arm for training with these seeds: the arm's own, and `random.1`, ... for the further seeds of a drawn
    one. All else here takes such a name where it takes an arm's.
    """
    return [name, *(f"{name}.{draw}" for draw in range(1, len(seeds)) if _ARMS[name].drawn)]


def drawn_for(name: str, seeds: Sequence[int], seed: int) -> str:
    """The subset of an arm that a training with `seed` gets."""
    names = draws(name, seeds)
    return names[seeds.index(seed)] if len(names) > 1 else name


def _arm_and_draw(name: str) -> tuple[Arm, int]:
    arm_name, _, draw = name.partition(".")
    return _ARMS[arm_name], int(draw or 0)


def _ranked(pool: Candidates, score: pl.Expr, descending: bool = True) -> pl.DataFrame:
    """The samples that have a score, by it."""
    scored = pool.samples.select("sample_id", score=score.cast(pl.Float64)).drop_nulls("score")
    return scored.sort("score", "sample_id", descending=[descending, False])


def _drawn(pool: Candidates, *purpose: str) -> pl.DataFrame:
    """The samples in a random order in which the place of each does not depend on the rest of the pool."""
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
    "length_matched", "drawn at random, with the lengths of the samples that another arm chose",
    settings=("reference",), drawn=True,
)  # fmt: skip
def _length_matched(pool: Candidates) -> pl.DataFrame:
    """For each sample of the reference, from its top, one drawn from the same narrow bin of token lengths, without putting back.

    It may be that sample itself: what is compared is the choice within a length.
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
    """From the median outwards. Bottom, middle and top are all in use, and which is best depends on the corpus (arXiv 2309.04564,
    2405.20541). The bottom is what the model says anyway; the top is short answers and what it can't read.
    """
    ranked = _ranked(pool, pl.col("perplexity"))
    middle = (pl.int_range(pl.len()) - (pl.len() - 1) / 2).abs()
    return ranked.sort(middle, "sample_id")


@arm("ifd", "highest IFD below 1: the prompt helps, but little", tables=("sample_features",))
def _ifd(pool: Candidates) -> pl.DataFrame:
    """PPL(response | prompt) / PPL(response), arXiv 2308.12032. From 1 on prompt and response do not belong together: such
    samples come last, the least wrong ones first.
    """
    below, beyond = pool.samples.filter(pl.col("ifd") < 1), pool.samples.filter(pl.col("ifd") >= 1)
    halves = [(below, True), (beyond, False)]
    return pl.concat([_ranked(Candidates(half, pool.settings), pl.col("ifd"), first) for half, first in halves])


def _by_contribution(control: str, descending: bool = True) -> Order:
    return lambda pool: _ranked(pool, pl.col(control), descending)


_TOP_OF = {
    "none": ("icon", "no context"), "random_tokens": ("rico", "random tokens"),
    "random_chars": ("rico_chars", "random characters"), PEERS: ("icon_peers", "samples of its length"),
}  # fmt: skip
for _control, (_name, _context) in _TOP_OF.items():
    arm(_name, f"highest contribution against {_context}", control=_control)(_by_contribution(_control))
arm("lowest", "lowest contribution against no context", control="none")(_by_contribution("none", descending=False))


@arm("icon_selector", "highest predicted contribution", tables=("predicted_scores",))
def _icon_selector(pool: Candidates) -> pl.DataFrame:
    return _ranked(pool, pl.col("predicted"))


@arm("icon_stratified", "highest contribution within its class of lengths", control="none", settings=("length_strata",))
def _icon_stratified(pool: Candidates) -> pl.DataFrame:
    """Classes of equal size by token length. A sample's place is its rank within its class, over the size of the class in the
    pool, so that every beginning of the ranking has the classes in the pool's proportions.
    """
    lengths, strata = pool.samples["n_tokens"].to_numpy(), pool.settings.length_strata
    edges = np.quantile(lengths, np.arange(1, strata) / strata) if len(lengths) else lengths
    classed = pool.samples.with_columns(stratum=pl.Series(np.searchsorted(edges, lengths, side="right")))
    classed = classed.with_columns(size=pl.len().over("stratum"))
    ranked = _ranked(pool, pl.col("none")).join(
        classed.select("sample_id", "stratum", "size"), on="sample_id", maintain_order="left"
    )
    place = (pl.int_range(pl.len()).over("stratum") + 0.5) / pl.col("size")
    return ranked.with_columns(place=place).sort("place", "sample_id").select("sample_id", "score")


def check_arms(settings: SelectionSettings, controls: Collection[str]) -> None:
    """Refuse arms that don't exist, or that rank by a control nobody computes.

    Raises:
        IconError: names the arm and the setting to change.
    """
    named = [("selection.arms", name) for name in settings.arms]
    if "length_matched" in settings.arms:
        named.append(("selection.reference", settings.reference))
        if settings.reference == "length_matched":
            raise IconError("selection.reference: length_matched copies another arm's lengths; name one, such as icon")
    for setting, name in named:
        if name not in _ARMS:
            raise IconError(f"{setting}: {name!r} is not an arm; known are {', '.join(sorted(_ARMS))}")
        control = _ARMS[name].control
        if control not in (None, PEERS, *controls):
            raise IconError(f"{setting}: {name!r} ranks by control {control!r}; add it to controls.kinds")


def _with_reference(name: str, settings: SelectionSettings) -> list[Arm]:
    """The arm, and the one it follows."""
    own, _ = _arm_and_draw(name)
    return [own, *([_ARMS[settings.reference]] if "reference" in own.settings else [])]


def controls_needed(name: str, settings: SelectionSettings) -> set[str]:
    """The controls whose contributions an arm, or the one it follows, ranks by."""
    return {each.control for each in _with_reference(name, settings) if each.control}


def tables_needed(name: str, settings: SelectionSettings) -> set[str]:
    """What has to be made for an arm besides contributions."""
    tables = {table for each in _with_reference(name, settings) for table in each.tables}
    return tables | ({"sample_features"} if settings.diversity and name != "full" else set())


def tables_of_arms(settings: SelectionSettings) -> set[str]:
    """What has to be made for the arms of the settings besides contributions."""
    return {table for name in settings.arms for table in tables_needed(name, settings)}


def needed_assets(settings: SelectionSettings) -> set[str]:
    """Those of `ON_DEMAND` that the arms of the settings ask for."""
    tables = tables_of_arms(settings)
    return tables | ({"sample_features", "selector"} if "predicted_scores" in tables else set())


def made_with(name: str, settings: SelectionSettings) -> dict[str, Any]:
    """The settings that an arm's subset depends on."""
    values = settings.model_dump()
    common: dict[str, Any] = {"fraction": settings.fraction}
    if name != "full":
        common |= {key: values[key] for key in ("budget", "diversity") if values[key] not in ("samples", None)}
    return common | {key: values[key] for each in _with_reference(name, settings) for key in each.settings}


def ranks_by(name: str) -> str | None:
    """The control whose contributions an arm ranks by, if any."""
    return _arm_and_draw(name)[0].control


def is_top_of(name: str, control: str) -> bool:
    """Whether the arm takes the samples of highest contribution against this control, and no others."""
    return _TOP_OF[control][0] == name


def has_score(name: str) -> bool:
    """Whether every sample that the arm chose has a score."""
    own, _ = _arm_and_draw(name)
    return bool(own.control or own.tables)


def work_owed(name: str, settings: SelectionSettings) -> list[str]:
    """The kinds of work in `scoring_costs` that the arm, or the one it follows, ranks and sieves by, and so owes; measured or
    predicted, contributions cost scoring.
    """
    tables = tables_needed(name, settings)
    predicted = "predicted_scores" in tables
    scored = predicted or bool(controls_needed(name, settings))
    works = {"pairs": scored, "controls": scored, "features": bool(tables), "selector": predicted}
    return [work for work, owed in works.items() if owed]


def rank(name: str, pool: Candidates) -> pl.DataFrame:
    """All that an arm can rank, best first: sample_id and score."""
    if name not in pool.rankings:
        own, draw = _arm_and_draw(name)
        pool.rankings[name] = own.order(replace(pool, draw=draw))
    return pool.rankings[name]


def select(name: str, pool: Candidates) -> Subset:
    """Choose the arm's samples from the top of its ranking: `selection.fraction` of the samples or of the training tokens,
    all for `full`. With `selection.diversity` those that are nearly the same as a chosen one are passed over.

    Raises:
        IconError: the pool is empty, or the arm can rank less than it must take.
    """
    parts = list[pl.DataFrame]()
    for part in _parts(name, pool):
        parts.append(part)
        taken = pl.concat(parts)
        if due := _due(name, taken, pool):
            rows = taken.head(due).select("sample_id", "score").with_row_index("rank", offset=1)
            rows = rows.with_columns(pl.col("rank").cast(pl.Int64), reason=pl.lit(_arm_and_draw(name)[0].description))
            return Subset(name, subset_id(name, rows["sample_id"].to_list()), rows, taken["place"][due - 1] + 1 - due)
    raise _too_few(name, sum(part.height for part in parts), pool)


def _parts(name: str, pool: Candidates) -> Iterator[pl.DataFrame]:
    """The ranking from its top with the place of each sample, and without those that are passed over."""
    ranking, limit = rank(name, pool).with_row_index("place"), pool.settings.diversity
    if TOKENS in pool.samples.columns:
        ranking = ranking.join(pool.samples.select("sample_id", TOKENS), on="sample_id", maintain_order="left")
    if limit is None or name == "full":
        yield ranking
        return
    sieve, embeddings = Sieve(limit), pool.vectors()
    size = max(_SIEVED_AT_ONCE, math.ceil(pool.settings.fraction * pool.samples.height))
    for start in range(0, ranking.height, size):
        part = ranking[start : start + size]
        yield part.filter(pl.Series(sieve.passes(embeddings.of(part["sample_id"].to_list()))))


def _due(name: str, ranked: pl.DataFrame, pool: Candidates) -> int | None:
    """How many to take from the top; None when these are not enough."""
    if name == "full" or pool.settings.budget == "samples":
        size = subset_size(name, pool.samples.height, pool.settings.fraction)
        return size if ranked.height >= size else None
    budget = token_budget(pool)
    fit = int((ranked[TOKENS].cum_sum() <= budget).sum())
    # The next one would exceed the budget; with nothing left to come, it fits whole.
    return max(1, fit) if fit < ranked.height or fit == pool.samples.height else None


def _too_few(name: str, left: int, pool: Candidates) -> IconError:
    needs, ranked = f"{subset_size(name, pool.samples.height, pool.settings.fraction)} samples", rank(name, pool).height
    if pool.settings.budget == "tokens" and name != "full":
        needs = f"{token_budget(pool):,.0f} training tokens"
    needs = f"arm {name}: needs {needs} of {pool.samples.height}, but"
    if ranked > left:
        return IconError(
            f"{needs} of the {ranked} it ranks {ranked - left} are too near to a better one; raise selection.diversity "
            "or lower selection.fraction"
        )
    by = next((each for each in reversed(_with_reference(name, pool.settings)) if each.control or each.tables), None)
    if by is None:
        return IconError(f"{needs} {ranked} are there; materialize raw_pool and sample_scores for every shard first")
    if by.control is None:
        tables = " and ".join(by.tables)
        return IconError(f"{needs} {ranked} have a row in {tables}; materialize {tables} for every shard first")
    return IconError(
        f"{needs} {ranked} have a score under control {by.control}; materialize raw_pool and sample_scores for every shard "
        "first; where scoring.direct_share is below 1, raise it or take the arm icon_selector"
    )


def token_budget(pool: Candidates) -> float:
    """Training tokens that an arm may take: what a random choice of the fraction has on average."""
    return pool.settings.fraction * float(pool.samples[TOKENS].sum())


def subset_size(name: str, pool_samples: int, fraction: float) -> int:
    """How many of the pool's unique samples an arm takes."""
    # As it is written: 0.07 of 100 is 7, where the nearest binary number gives a little more, and so 8.
    return pool_samples if name == "full" else math.ceil(Decimal(str(fraction)) * pool_samples)


def subset_id(name: str, sample_ids: Sequence[str]) -> str:
    """The name of a subset: its arm and its samples, best first."""
    return digest([name, list(sample_ids)])
