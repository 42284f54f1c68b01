"""Where one sample stands in one arm: its rank, whether it is in the newest subset, why, and what would change it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from icon_assets.core.digests import share_ceiling
from icon_assets.core.errors import IconError
from icon_assets.core.features.similarity import Sieve
from icon_assets.core.publish.rankings import Ranking, Rankings
from icon_assets.core.selection.arm import arm_and_draw, ranks_by, with_reference
from icon_assets.core.selection.choose import subset_size
from icon_assets.core.trust.warnings import Z_95
from icon_assets.settings import Settings

_MOST_COMPARED = 20_000  # vectors; beyond it, near-duplicates among the better ones are not counted
_DECIMALS = 6  # of a cosine, as in the sieve

State = Literal[
    "chosen",
    "below_cut",
    "near_duplicate",
    "not_scored",
    "not_drawn",
    "no_features",
    "no_prediction",
    "not_ranked",
    "not_selected_yet",
    "older_subset",
]


@dataclass(frozen=True)
class Standing:
    """One sample in one arm or draw of it.

    Attributes:
        score: what the arm ranks it by; None where it has no score, as in a random order.
        low, high: 95 % interval of the score, where it is an estimate from some of the probes.
        rank, of: its rank among the `of` ranked samples, 1 is best; None where it is not ranked.
        chosen_rank: its rank in the newest subset, None where it is not in it.
        score_at_cut: score of the last chosen sample, only where a better score always ranks better.
        short_of_cut: distance of its score to that, in the unit of the score.
        places_below: ranks between it and the last chosen sample.
        near: the better sample that it nearly repeats, and their cosine.
        reason: why it is in the subset or not. `change`: what would have to change.
    """

    arm: str
    state: State
    reason: str
    change: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    rank: int | None = None
    of: int = 0
    chosen_rank: int | None = None
    score_at_cut: float | None = None
    short_of_cut: float | None = None
    places_below: int | None = None
    near: str | None = None
    near_cosine: float | None = None


def standing(rankings: Rankings, name: str, sample_id: str, settings: Settings) -> Standing:
    """Where a sample of the pool stands in an arm or in a draw of it."""
    ranking = rankings.of(name)
    if ranking.refused:
        return Standing(name, "not_ranked", f"the arm can't rank the pool: {ranking.refused}", "see the reason")
    row = ranking.rows.filter(pl.col("sample_id") == sample_id)
    if row.is_empty():
        return _unranked(ranking, sample_id, settings)
    score, rank = row["score"][0], row["rank"][0]
    low, high = _interval(rankings, name, sample_id, score)
    bare = Standing(name, "not_selected_yet", "", "", score, low, high, rank, ranking.rows.height)
    if ranking.event is None:
        return _not_selected_yet(bare, ranking, rankings.pool.height)
    cut = _Cut(rankings, ranking, rankings.chosen(ranking.event))
    if sample_id in cut.places:
        return _chosen(bare, cut)
    return _left_out(bare, cut, sample_id)


def _interval(rankings: Rankings, name: str, sample_id: str, score: float | None) -> tuple[float | None, float | None]:
    """Of a contribution that was estimated from some of the probes."""
    rows = rankings.store.query(
        """
        SELECT standard_error FROM sample_scores
        WHERE score_key = $key AND control = $control AND sample_id = $id AND standard_error > 0
        """,
        {"key": rankings.score_key, "control": ranks_by(name) or "", "id": sample_id},
    )
    if score is None or rows.is_empty():
        return None, None
    error = Z_95 * rows["standard_error"][0]
    return score - error, score + error


@dataclass(frozen=True)
class _Cut:
    """The newest subset of an arm beside the arm's ranking."""

    rankings: Rankings
    ranking: Ranking
    chosen: Sequence[str]

    @cached_property
    def places(self) -> dict[str, int]:
        """The rank in the subset of each of its samples."""
        return {sample_id: place for place, sample_id in enumerate(self.chosen, 1)}

    @cached_property
    def pool(self) -> int:
        return self.rankings.pool.height

    @cached_property
    def sieved(self) -> bool:
        """Whether near-duplicates were skipped."""
        return self.ranking.settings.diversity is not None and self.ranking.arm != "full"

    @cached_property
    def _ranks(self) -> list[int]:
        """The ranks of the chosen samples that are still ranked, in the order of the subset."""
        order = pl.DataFrame({"sample_id": list(self.chosen)}, schema={"sample_id": pl.String})
        return order.join(self.ranking.rows, on="sample_id", maintain_order="left")["rank"].drop_nulls().to_list()

    @cached_property
    def is_current(self) -> bool:
        """Whether the subset is still the top of the ranking, as many samples as the fraction asks for."""
        in_order = self._ranks == sorted(self._ranks) and len(self._ranks) == len(self.chosen)
        settings = self.ranking.settings
        size = subset_size(self.ranking.arm, self.pool, settings.fraction)
        as_many = len(self.chosen) == size or (settings.budget == "tokens" and self.ranking.arm != "full")
        return in_order and as_many and (self.sieved or self._ranks == list(range(1, len(self._ranks) + 1)))

    @cached_property
    def last(self) -> int:
        """The rank of the last chosen sample."""
        if self.sieved or self.is_current:
            return max(self._ranks, default=0)
        return min(len(self.chosen), self.ranking.rows.height)

    @cached_property
    def score(self) -> float | None:
        """The score of the last chosen sample, where scores alone decide."""
        rows = self.ranking.rows
        return rows["score"][self.last - 1] if self.last and self.ranking.direction else None

    def better(self, rank: int) -> list[str]:
        """The samples of the ranking up to this rank."""
        return self.ranking.rows["sample_id"].head(rank).to_list()

    def budget(self) -> str:
        """Why the cut is where it is."""
        settings = self.ranking.settings
        if settings.budget == "tokens" and self.ranking.event:
            allowed = self.ranking.event.summary.get("token_budget", 0)
            return f"the budget of {allowed:,.0f} training tokens was full after rank {self.last:,}"
        return f"selection.fraction {settings.fraction:g} takes {len(self.chosen):,} of {self.pool:,}"

    def fraction_for(self, rank: int) -> str:
        """The smallest selection.fraction that takes the ranking up to this rank."""
        if self.ranking.settings.budget == "tokens" and self.ranking.arm != "full":
            rows = self.ranking.rows.head(rank).join(self.rankings.pool, on="sample_id")
            share = int(rows["n_tokens"].sum()) / max(1, int(self.rankings.pool["n_tokens"].sum()))
            return f"selection.fraction {share:.2g} (about: by the tokens as a context up to its rank)"
        return f"selection.fraction {least_fraction(rank, self.pool):g} ({rank:,} of {self.pool:,})"

    def note(self) -> str:
        if self.is_current:
            return ""
        return "; the subset was chosen from other scores or another pool, so choose again"


def least_fraction(rank: int, pool: int) -> float:
    """The smallest fraction, with four decimals, at which an arm takes `rank` of `pool` samples."""
    return min(1.0, -(-rank * 10_000 // pool) / 10_000)


def _chosen(bare: Standing, cut: _Cut) -> Standing:
    place = cut.places[_sample(bare, cut)]
    description = arm_and_draw(bare.arm)[0].description
    reason = f"rank {place:,} of {len(cut.chosen):,} chosen: {description}{cut.note()}"
    if bare.arm == "full":
        return replace(
            bare, state="chosen", reason=reason, change="nothing: the arm takes every sample", chosen_rank=place
        )
    change = f"leaves below {cut.fraction_for(place if cut.sieved else bare.rank or place)}"
    out = cut.ranking.rows["score"][cut.last] if cut.score is not None and cut.last < bare.of else None
    if out is not None and not cut.sieved:
        side = "below" if cut.ranking.direction > 0 else "above"
        change += f", or with a score {side} {out:.4g}, the best that was left out"
    at_cut = cut.score
    return replace(bare, state="chosen", reason=reason, change=change, chosen_rank=place, score_at_cut=at_cut)


def _sample(bare: Standing, cut: _Cut) -> str:
    return cut.ranking.rows["sample_id"][(bare.rank or 1) - 1]


def _left_out(bare: Standing, cut: _Cut, sample_id: str) -> Standing:
    """A ranked sample that is not in the subset."""
    rank = bare.rank or 0
    near = _nearest(cut, rank, sample_id)
    if near and rank <= cut.last:
        return _near_duplicate(bare, cut, near)
    if rank <= cut.last:
        reason = f"its rank is above the cut now, but the subset is older{cut.note()}"
        return replace(
            bare, state="older_subset", reason=reason, change="run `icon-assets run --select selected_subset`"
        )
    places = rank - cut.last
    reason = f"below the cut by {places:,} rank{'s' if places > 1 else ''}"
    changes = [f"{cut.fraction_for(_rank_without_repeats(cut, rank))} or more"]
    short = None
    if cut.score is not None and bare.score is not None:
        short = abs(cut.score - bare.score)
        reason += f" and {short:.4g} (score at the cut {cut.score:.4g})"
        changes = [f"a score {'above' if cut.ranking.direction > 0 else 'below'} {cut.score:.4g}", *changes]
        if bare.low is not None and bare.high is not None and bare.low <= cut.score <= bare.high:
            reason += ", within its interval"
    reason += f"; {cut.budget()}{cut.note()}"
    change = ", or ".join(changes)
    if near:
        change += f"; it also nearly repeats {near[0]} (cosine {near[1]:.4f}), which selection.diversity must allow"
    left = replace(bare, state="below_cut", reason=reason, change=change, places_below=places)
    left = replace(left, score_at_cut=cut.score, short_of_cut=short)
    return replace(left, near=near[0], near_cosine=near[1]) if near else left


def _near_duplicate(bare: Standing, cut: _Cut, near: tuple[str, float]) -> Standing:
    limit = cut.ranking.settings.diversity
    return replace(
        bare,
        state="near_duplicate",
        reason=f"skipped: nearly the same as the chosen sample {near[0]} (cosine {near[1]:.4f}, "
        f"selection.diversity {limit}){cut.note()}",
        change=f"selection.diversity {near[1]:.4f} or more, or that sample leaves the pool",
        near=near[0],
        near_cosine=near[1],
        score_at_cut=cut.score,
    )


def _nearest(cut: _Cut, rank: int, sample_id: str) -> tuple[str, float] | None:
    """The better sample that it nearly repeats, and their cosine; only of chosen ones where it is above the cut."""
    if not cut.sieved or rank > _MOST_COMPARED:
        return None
    better = [each for each in cut.better(rank - 1) if rank > cut.last or each in cut.places]
    try:
        vectors = cut.rankings.embeddings.of([*better, sample_id])
    except IconError:
        return None
    if rank > cut.last:
        kept = Sieve(cut.ranking.settings.diversity or 1).passes(vectors)
        better = [each for each, passed in zip(better, kept[:-1], strict=True) if passed]
        vectors = vectors[np.append(kept[:-1], True)]
    cosines = np.round(vectors[:-1] @ vectors[-1], _DECIMALS)
    if not len(cosines) or cosines.max() <= (cut.ranking.settings.diversity or 1):
        return None
    return better[int(cosines.argmax())], float(cosines.max())


def _rank_without_repeats(cut: _Cut, rank: int) -> int:
    """Its rank once near-duplicates of better samples are skipped; the rank itself where they are not compared."""
    if not cut.sieved or rank > _MOST_COMPARED:
        return rank
    try:
        vectors = cut.rankings.embeddings.of(cut.better(rank))
    except IconError:
        return rank
    return int(Sieve(cut.ranking.settings.diversity or 1).passes(vectors)[:-1].sum()) + 1


def _not_selected_yet(bare: Standing, ranking: Ranking, pool: int) -> Standing:
    settings = ranking.settings
    change = "run `icon-assets run --select selected_subset`"
    if settings.budget == "samples" and settings.diversity is None and bare.rank:
        inside = bare.rank <= subset_size(bare.arm, pool, settings.fraction)
        change += f"; at selection.fraction {settings.fraction:g} it would be {'in' if inside else 'left out'}"
    return replace(bare, reason="the arm has no subset yet", change=change)


def _unranked(ranking: Ranking, sample_id: str, settings: Settings) -> Standing:
    """A sample without the figure that the arm ranks by."""
    arm = ranking.arm
    by = next((each for each in reversed(with_reference(arm, ranking.settings)) if each.control or each.tables), None)
    share = settings.scoring.direct_share
    ceiling = share_ceiling(share)
    of = ranking.rows.height
    if by and by.control and ceiling is not None and sample_id >= ceiling:
        own = int(sample_id, 16) / 16 ** len(sample_id)
        change = f"scoring.direct_share above {own:.4f}, or the arm icon_selector, which predicts its contribution"
        return Standing(
            arm, "not_drawn", f"not drawn for direct scoring (scoring.direct_share {share:g})", change, of=of
        )
    if by and by.control:
        change = "run `icon-assets run --select sample_scores selected_subset`"
        return Standing(arm, "not_scored", f"not scored under control {by.control}", change, of=of)
    if by and "predicted_scores" in by.tables:
        change = "run `icon-assets run --select sample_features selector predicted_scores selected_subset`"
        return Standing(arm, "no_prediction", "the selector has not predicted its contribution", change, of=of)
    if by and by.tables:
        change = "run `icon-assets run --select sample_features probe_features selected_subset`"
        return Standing(arm, "no_features", "it has no features", change, of=of)
    return Standing(arm, "not_ranked", "the arm does not rank it", "see docs/arms.md", of=of)
