"""Whether to believe a selection: how much of it something simpler explains, and how much of it another draw would keep.

Figures only; what an arm is, and what it chose, is decided elsewhere. Each figure says what it is to be read against.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.features.similarity import Rounds, Sieve
from icon_assets.core.inputs.ingest import STRATUM_FIELDS
from icon_assets.core.passes.encoder import pool_rows, sample_of
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.probes.draw import Candidate, near_duplicates
from icon_assets.core.scoring.contribution import influences, matrix
from icon_assets.core.scoring.peers import PEERS, Draw, draw, peer_influences
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.selection.choose import rank, ranks_by, select
from icon_assets.core.selector.learning import LEAST_SAMPLES, relearn
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, Settings

FRACTIONS = (0.01, 0.05, 0.15, 0.3)
_PROBE_DRAWS = 200
_HALVINGS, _MOST_NAMED = 50, 5_000
OTHER_PROBES, OTHER_HALF = "another set of as many probes", "the other half of the probes"
_READ_TEXTS, _COMPARED_VECTORS = 2_000, 20_000
_NEAR_COSINE = 0.95
_COMPARABLE = 10  # samples on either side; fewer tell nothing from chance
_MOST_STRATA, _SHOWN_STRATA = 100, 20
_Z = 1.959964  # of an interval of 95 %
# From which on a figure is worth a line of warning.
_FAR_FROM_CHANCE = 3  # standard errors
_SHAKY, _REPEATED, _SAME, _TWICE = 0.7, 0.05, 0.9, 2


@dataclass(frozen=True)
class Figure:
    """One figure of one selection; `low` and `high` where it has an interval, `detail` what it is to be read against."""

    figure: str
    against: str
    value: float
    low: float | None = None
    high: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Selected:
    """What is looked at: one arm's present subset, best first, and the present subsets of the others by arm."""

    arm: str
    sample_ids: Sequence[str]
    others: dict[str, set[str]]


def trust_figures(store: Store, key: ScoreKey, settings: Settings, pool: Candidates, chosen: Selected) -> pl.DataFrame:
    """All figures of one selection, as rows of the table `trust_figures` without subset_id."""
    figures = [
        *length_figures(chosen, pool),
        *nestedness(chosen.arm, pool),
        *_redrawn(store, key, settings, chosen.arm, pool),
        *stratum_shares(pool_strata(store), chosen.sample_ids),
        *_repeats(store, settings, chosen, pool),
        *arm_overlaps(chosen, pool.samples.height),
    ]
    schema = {
        name: pl.Float64 if name in ("value", "low", "high") else pl.String for name in Figure.__dataclass_fields__
    }
    return pl.DataFrame([vars(each) for each in figures], schema=schema).with_columns(arm=pl.lit(chosen.arm))


# Length


def auc(values: np.ndarray, chosen: np.ndarray) -> float:
    """How often a chosen sample's value is above that of one not chosen; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(chosen, values))


def auc_error(value: float, n_chosen: int, n_rest: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982)."""
    both_above, above_both = value / (2 - value), 2 * value**2 / (1 + value)
    spread = (n_chosen - 1) * (both_above - value**2) + (n_rest - 1) * (above_both - value**2)
    return math.sqrt(max(0.0, value * (1 - value) + spread) / (n_chosen * n_rest))


def length_figures(chosen: Selected, pool: Candidates) -> list[Figure]:
    """What length alone tells: of chosen against not chosen samples, and of the ranking of the whole pool."""
    samples = pool.samples
    inside = samples["sample_id"].is_in(list(chosen.sample_ids)).to_numpy()
    figures = []
    if min(inside.sum(), (~inside).sum()) >= _COMPARABLE:
        for against, column in (("tokens", "n_tokens"), ("response characters", "n_response_chars")):
            value = auc(samples[column].to_numpy(), inside)
            error = _Z * auc_error(value, int(inside.sum()), int((~inside).sum()))
            detail = "chosen samples are longer above 0.5, shorter below it"
            figures.append(Figure("length_auc", against, value, max(0, value - error), min(1, value + error), detail))
    return figures + length_correlation(chosen.arm, pool)


def length_correlation(arm: str, pool: Candidates) -> list[Figure]:
    """Spearman of an arm's ranking with token length, positive where longer samples stand first."""
    ranking = rank(arm, pool).join(pool.samples.select("sample_id", "n_tokens"), on="sample_id", maintain_order="left")
    value = spearman(-np.arange(ranking.height), ranking["n_tokens"].to_numpy())
    if arm == "full" or not math.isfinite(value):
        return []
    error = _Z * math.sqrt(1.06 / (ranking.height - 3)) if ranking.height > 3 else math.inf
    low, high = (math.tanh(math.atanh(min(max(value, -0.9999), 0.9999)) + side * error) for side in (-1, 1))
    return [Figure("length_spearman", "tokens", value, low, high, f"rank correlation over {ranking.height:,} samples")]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; NaN where one of them is constant."""
    from scipy import stats

    if not len(one) or not np.ptp(one) or not np.ptp(other):
        return math.nan
    return float(stats.spearmanr(one, other).statistic)  # pyright: ignore[reportAttributeAccessIssue]


# What another draw would keep


def nestedness(arm: str, pool: Candidates) -> list[Figure]:
    """The share of the top of each fraction that is also in that of the next larger one; 1 where one ranking serves all."""
    if arm == "full":
        return []
    tops = {fraction: ids for fraction in FRACTIONS if (ids := _top(arm, pool.at(fraction))) is not None}
    detail = "1: what is chosen at one size is chosen at every larger one"
    return [
        Figure(
            "nestedness",
            f"{small:.0%} in {large:.0%}",
            len(tops[small] & tops[large]) / len(tops[small]),
            detail=detail,
        )
        for small, large in pairwise(tops)
    ]


def _top(arm: str, pool: Candidates) -> set[str] | None:
    """None where the arm can't rank so much."""
    try:
        return set(select(arm, pool).rows["sample_id"])
    except IconError:
        return None


def _redrawn(store: Store, key: ScoreKey, settings: Settings, arm: str, pool: Candidates) -> list[Figure]:
    """Overlap over other draws of the probes and of the control's contexts, for arms that have those in them: that rank by
    contributions, by what a light selector makes of them, or by likeness to the probes.
    """
    if arm == "rds":
        return _halved(arm, pool, settings.probes.seed)
    learned = arm == "icon_selector" and settings.selector.kind == "light"
    control = (settings.selector.control or settings.controls.primary) if learned else ranks_by(arm)
    if control is None:
        return []
    drawn = draw(store, key, settings.probes.seed)
    if learned and len(drawn.sample_ids) < LEAST_SAMPLES:
        return []
    scores = relearn(store, key, drawn.sample_ids, settings.selector) if learned else _as_they_are
    top = _topper(arm, "predicted" if learned else control, drawn.sample_ids, pool)
    figures = probe_overlap(
        top, _influences(store, key, settings.controls, control, drawn), settings.probes.seed, scores
    )
    if control in ("random_tokens", "random_chars") and settings.controls.draws > 1:
        means = [_influences(store, key, part, control, drawn).mean(axis=1) for part in halved_draws(settings.controls)]
        figures += control_overlap(top, scores(np.column_stack(means)), control, settings.controls.draws)
    return figures


def _influences(store: Store, key: ScoreKey, controls: ControlSettings, control: str, drawn: Draw) -> np.ndarray:
    """[samples, probes] under one control, in the order of the draw."""
    if control == PEERS:
        return peer_influences(drawn)
    table = influences(store, key, None, controls, drawn.sample_ids).filter(pl.col("control") == control)
    sample_ids, _, x = matrix(table)
    place = {sample_id: at for at, sample_id in enumerate(sample_ids)}
    return x[[place[sample_id] for sample_id in drawn.sample_ids]]


Top = Callable[[np.ndarray], set[str] | None]


def _as_they_are(contributions: np.ndarray) -> np.ndarray:
    return contributions


def _few(pool: Candidates, sample_ids: Sequence[str]) -> Candidates:
    """These samples of the pool only."""
    ids = pl.DataFrame({"sample_id": list(sample_ids)})
    embeddings = pool.vectors().held(sample_ids) if pool.settings.diversity else pool.embeddings
    return Candidates(pool.samples.join(ids, on="sample_id"), pool.settings, embeddings)


def _topper(arm: str, column: str, sample_ids: Sequence[str], pool: Candidates) -> Top:
    """What the arm would choose from these samples if this were what it ranks them by."""
    few = _few(pool, sample_ids)

    def top(values: np.ndarray) -> set[str] | None:
        scores = pl.DataFrame({"sample_id": sample_ids, column: values})
        samples = few.samples.drop(column).join(scores, on="sample_id", maintain_order="left")
        return _top(arm, replace(few, samples=samples, rankings={}))

    return top


def probe_overlap(
    top: Top, x: np.ndarray, seed: int, scores: Callable[[np.ndarray], np.ndarray] = _as_they_are
) -> list[Figure]:
    """How much of the top another set of as many probes would keep.

    Draws with replacement tell by how much scores move with the probes. But they move around what was measured, which moved
    as far itself: as much of it as is noise will not be there again. The scores of another set are therefore those
    measured times their reliability r, and vary around that by 1 + r times the variance of the draws: twice it where
    probes agree, and where there is nothing but noise another set knows nothing of this one.

    Args:
        x: influences, [samples, probes].
        scores: makes of contributions what the arm ranks by, [samples, draws] both.
    """
    n_probes = x.shape[1]
    weights = (
        np.random.default_rng(seed).multinomial(n_probes, np.full(n_probes, 1 / n_probes), _PROBE_DRAWS) / n_probes
    )
    own, drawn = np.split(scores(np.column_stack([x.mean(axis=1), x @ weights.T])), [1], axis=1)
    if n_probes < 2 or not own.var():
        return []
    moved = (drawn - own) * math.sqrt(n_probes / (n_probes - 1))
    reliability = max(0.0, 1 - float(moved.var(axis=0).mean() / own.var()))
    others = reliability * own + math.sqrt(1 + reliability) * moved
    detail = f"{_PROBE_DRAWS} draws of {n_probes} probes, {len(x):,} samples"
    chosen, *tops = (top(column) for column in np.column_stack([own, others]).T)
    return _kept("probe_overlap", OTHER_PROBES, [(chosen, each) for each in tops], len(x), detail)


def halved_draws(controls: ControlSettings) -> list[ControlSettings]:
    """Disjoint halves of the draws of random contexts; of three, each alone."""
    half = controls.draws // 2
    starts = range(0, controls.draws - half + 1, half)
    return [controls.model_copy(update={"seed": controls.seed + start, "draws": half}) for start in starts]


def control_overlap(top: Top, scores: np.ndarray, control: str, draws: int) -> list[Figure]:
    """How much of the top two halves of the draws of random contexts have in common: all of them together keep more.

    Args:
        scores: what the arm would rank by, [samples, halves].
    """
    pairs = list(combinations([top(column) for column in scores.T], 2))
    each = "single draws" if draws < 4 else f"{draws // 2} draws together"
    return _kept(
        "control_overlap", control, pairs, len(scores), f"{each} against others, where the arm averages {draws}"
    )


def _halved(arm: str, pool: Candidates, seed: int) -> list[Figure]:
    """How much of an arm that asks the probes in turn one half of them keeps of the other's: as many would keep more."""
    random = np.random.default_rng(seed)
    sample_ids = rank(arm, pool)["sample_id"].sort().to_numpy()
    sample_ids = np.sort(random.choice(sample_ids, min(len(sample_ids), _MOST_NAMED), replace=False))
    rounds = Rounds(pool.vectors(), sample_ids.tolist())

    few = _few(pool, sample_ids.tolist())

    def top(probes: np.ndarray) -> set[str] | None:
        ranking = pl.DataFrame({"sample_id": sample_ids[rounds.order(probes)].tolist(), "score": 0.0})
        return _top(arm, replace(few, rankings={arm: ranking}))

    half = len(rounds.places) // 2
    drawn = [random.permutation(len(rounds.places)) for _ in range(_HALVINGS if half else 0)]
    pairs = [(top(order[:half]), top(order[half : 2 * half])) for order in drawn]
    detail = f"{_HALVINGS} times {half} probes against {half} others, {len(sample_ids):,} samples; as many as the arm has would keep more"
    return _kept("probe_overlap", OTHER_HALF, pairs, len(sample_ids), detail)


def _kept(
    figure: str, against: str, pairs: Sequence[tuple[set[str] | None, set[str] | None]], n_samples: int, detail: str
) -> list[Figure]:
    """The shared part of each two choices: mean, and where 95 % of them lie; nothing where one could not be made."""
    shared = [(len(one & other) / len(one), len(other) / n_samples) for one, other in pairs if one and other]
    if not shared or len(shared) < len(pairs):
        return []
    value, chance = (float(each) for each in np.mean(shared, axis=0))
    low, high = np.quantile([kept for kept, _ in shared], [0.025, 0.975]).tolist() if len(shared) > 1 else (None, None)
    return [Figure(figure, against, value, low, high, f"{chance:.2f} would stay by chance alone; {detail}")]


# What it is made of


def pool_strata(store: Store) -> pl.DataFrame:
    """The kind of task of every unique sample: the first of `STRATUM_FIELDS` that at least half of the rows have, with 2 to 100
    different values; the file, where there is no such field.
    """
    fields = ", ".join(
        f"count(metadata->>'{each}') * 2 >= count(*) AND count(DISTINCT metadata->>'{each}') BETWEEN 2 AND {_MOST_STRATA} AS {each}"
        for each in STRATUM_FIELDS
    )
    usable = store.query(f"SELECT {fields} FROM delta.pool").row(0, named=True)  # noqa: S608  (our own text)
    field = next((f"metadata->>'{name}'" for name, usable in usable.items() if usable), "file")
    return store.query(f"SELECT sample_id, coalesce(min({field}), '') AS stratum FROM delta.pool GROUP BY sample_id")  # noqa: S608


def stratum_shares(strata: pl.DataFrame, sample_ids: Sequence[str]) -> list[Figure]:
    """The share of each stratum among the chosen, beside what a random choice of as many would have."""
    counts = strata.group_by("stratum").agg(n=pl.len()).sort("n", "stratum", descending=[True, False])
    shown = counts["stratum"].head(_SHOWN_STRATA)
    named = strata.with_columns(
        stratum=pl.when(pl.col("stratum").is_in(shown.to_list())).then("stratum").otherwise(pl.lit("(others)"))
    )
    inside = pl.col("sample_id").is_in(list(sample_ids))
    groups = named.group_by("stratum").agg(n=pl.len(), k=inside.sum()).sort("n", "stratum", descending=[True, False])
    total, taken = strata.height, max(1, len(sample_ids))
    figures = []
    for stratum, n, k in groups.iter_rows():
        share = n / total
        error = _Z * math.sqrt(share * (1 - share) / taken * max(0, total - taken) / max(1, total - 1))
        figures.append(
            Figure(
                "stratum_share", stratum, k / taken, max(0, share - error), share + error, f"{share:.3f} of the pool"
            )
        )
    return figures


def _repeats(store: Store, settings: Settings, chosen: Selected, pool: Candidates) -> list[Figure]:
    """The share of the chosen that nearly repeats a better one: by their words, and by embeddings where there are any."""
    read, limit = list(chosen.sample_ids[:_READ_TEXTS]), settings.probes.near_duplicate
    rows = {row["sample_id"]: row for row in pool_rows(store, read)}
    texts = [Candidate(sample_of(rows[each]), "", rows[each]["file"], rows[each]["row"]) for each in read]
    detail = f"of the first {len(read):,}; {limit:.0%} of their word triples in common"
    figures = [Figure("near_duplicates", "words", len(near_duplicates(texts, limit)) / len(read), detail=detail)]
    compared = list(chosen.sample_ids[:_COMPARED_VECTORS])
    if pool.embeddings is not None and pool.embeddings.has(compared):
        nearest = settings.selection.diversity or _NEAR_COSINE
        passes = Sieve(nearest).passes(pool.embeddings.of(compared))
        detail = f"of the first {len(compared):,}; cosine of embeddings above {nearest}"
        figures.append(Figure("near_duplicates", "embeddings", float(1 - passes.mean()), detail=detail))
    return figures


def arm_overlaps(chosen: Selected, pool_samples: int) -> list[Figure]:
    """The share of this selection that each other arm has chosen too."""
    own = set(chosen.sample_ids)
    return [
        Figure("arm_overlap", arm, len(own & other) / len(own), detail=f"by chance {len(other) / pool_samples:.3f}")
        for arm, other in sorted(chosen.others.items())
    ]


# In words


def summary(figures: pl.DataFrame) -> pl.DataFrame:
    """One row per arm: of each figure the value that speaks most against it."""
    worst = {
        "length AUC": _where("length_auc", "tokens"), "response AUC": _where("length_auc", "response characters"),
        "rank ~ length": _where("length_spearman"), "nested": _where("nestedness").min(),
        "kept by other probes": _where("probe_overlap"), "kept by other contexts": _where("control_overlap"),
        "near-duplicates": _where("near_duplicates").max(), "in random": _where("arm_overlap", "random"),
    }  # fmt: skip
    return figures.group_by("arm").agg(**{name: value.max() for name, value in worst.items()}).sort("arm")


def _where(figure: str, against: str | None = None) -> pl.Expr:
    of_figure = pl.col("figure") == figure
    return pl.col("value").filter(of_figure if against is None else of_figure & (pl.col("against") == against))


def warnings(figures: pl.DataFrame, length_limit: float) -> list[str]:
    """What a reader of these figures should be told, a line each.

    Args:
        figures: rows of the view `trust_figures`, of any arms.
    """
    lines = [_warning(row, length_limit) for row in figures.iter_rows(named=True)]
    return [line for line in lines if line]


def _warning(row: dict[str, Any], length_limit: float) -> str:
    arm, against, value = row["arm"], row["against"], row["value"]
    if row["figure"] == "length_auc" and explained_by_length(value, length_limit):
        longer = "longer" if value > 0.5 else "shorter"
        return f"{arm}: chosen samples are {longer} ({against}): length alone tells them from the rest with AUC {max(value, 1 - value):.2f}"
    if row["figure"] == "nestedness" and value < 1:
        return f"{arm}: only {value:.0%} of what it chooses at one size is chosen at the next larger one ({against})"
    if row["figure"] == "probe_overlap" and value < _SHAKY:
        chance = row["detail"].split(";")[0]
        return f"{arm}: with {against} {1 - value:.0%} of it would be other samples ({chance}); raise probes.count"
    if row["figure"] == "control_overlap" and value < _SHAKY:
        return f"{arm}: with other random contexts {1 - value:.0%} of it would be other samples ({row['detail']}); raise controls.draws"
    if row["figure"] == "near_duplicates" and value > _REPEATED:
        return f"{arm}: {value:.0%} of it nearly repeats a better sample ({against}); see selection.diversity"
    if row["figure"] == "arm_overlap" and value > _SAME and against != "full" and arm != "full":
        return f"{arm}: {value:.0%} of it is also in {against}: a comparison of the two says little"
    if row["figure"] == "stratum_share" and _is_apart(row):
        return f"{arm}: {value:.0%} of it is {against}, where the pool has {row['detail'].split()[0]}"
    return ""


def explained_by_length(value: float, limit: float) -> bool:
    """Whether an AUC of length is beyond the limit, on either side."""
    return abs(value - 0.5) > limit - 0.5


def _is_apart(row: dict[str, Any]) -> bool:
    """Whether a stratum has more than twice its share or less than half, and not by chance."""
    share = float(row["detail"].split()[0])
    far = abs(row["value"] - share) > _FAR_FROM_CHANCE / _Z * (row["high"] - share)
    return far and not share / _TWICE <= row["value"] <= share * _TWICE
