"""How much of a selection is kept when its size, the probes or the random contexts are drawn again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.contribution import influences, matrix
from icon_assets.core.scoring.peers import PEERS, Draw, draw, peer_influences
from icon_assets.core.selection.arm import rank, ranks_by
from icon_assets.core.selection.arms import taken_by, turn_values
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.selection.choose import select
from icon_assets.core.selector.learning import LEAST_SAMPLES
from icon_assets.core.selector.light import relearn
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, Settings

FRACTIONS = (0.01, 0.05, 0.15, 0.3)
_PROBE_DRAWS = 200
_HALVINGS = 50
_MOST_NAMED = 5_000
OTHER_PROBES = "another set of as many probes"
OTHER_HALF = "the other half of the probes"


@dataclass(frozen=True)
class Figure:
    """One figure of one selection. `low` and `high`: its interval, if it has one. `detail`: the value to compare it
    with."""

    figure: str
    against: str
    value: float
    low: float | None = None
    high: float | None = None
    detail: str = ""


def nestedness(arm: str, pool: Candidates) -> list[Figure]:
    """The share of the top of each fraction that is also in the top of the next larger one; 1 where one ranking serves
    all."""
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
    """None where the arm can't rank so many samples."""
    try:
        return set(select(arm, pool).rows["sample_id"])
    except IconError:
        return None


def redrawn(store: Store, key: ScoreKey, settings: Settings, arm: str, pool: Candidates) -> list[Figure]:
    """Overlap over redraws of the probes and of the control's contexts, for arms that depend on them: arms that rank by
    contributions, by a light selector's predictions of them, or by similarity to the probes."""
    if (values := turn_values(arm, pool)) is not None:
        return _halved(arm, pool, values, settings.probes.seed)
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
    return replace(pool, samples=pool.samples.join(ids, on="sample_id"), embeddings=embeddings, rankings={})


def _topper(arm: str, column: str, sample_ids: Sequence[str], pool: Candidates) -> Top:
    """The samples that the arm would choose if it ranked them by these scores."""
    few = _few(pool, sample_ids)

    def top(values: np.ndarray) -> set[str] | None:
        scores = pl.DataFrame({"sample_id": sample_ids, column: values})
        samples = few.samples.drop(column).join(scores, on="sample_id", maintain_order="left")
        return _top(arm, replace(few, samples=samples, rankings={}))

    return top


def probe_overlap(
    top: Top, x: np.ndarray, seed: int, scores: Callable[[np.ndarray], np.ndarray] = _as_they_are
) -> list[Figure]:
    """How much of the top a different probe set of the same size would keep.

    Draws with replacement show how much scores vary with the probes. But they vary around the measured scores, which
    contain noise of the same size, and a new set would not repeat that noise. The scores of a new set are therefore
    modelled as the measured ones times their reliability r, with 1 + r times the variance of the draws. Where probes
    agree, this is twice that variance. Where there is only noise, a new set is unrelated to this one.

    Args:
        x: influences, [samples, probes].
        scores: turns contributions into the scores that the arm ranks by; both are [samples, draws].
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
    """Disjoint halves of the draws of random contexts. With three draws, each one alone."""
    half = controls.draws // 2
    starts = range(0, controls.draws - half + 1, half)
    return [controls.model_copy(update={"seed": controls.seed + start, "draws": half}) for start in starts]


def control_overlap(top: Top, scores: np.ndarray, control: str, draws: int) -> list[Figure]:
    """How much of the top two halves of the random contexts have in common. All draws together would keep more.

    Args:
        scores: the scores that the arm would rank by, [samples, halves].
    """
    pairs = list(combinations([top(column) for column in scores.T], 2))
    each = "single draws" if draws < 4 else f"{draws // 2} draws together"
    return _kept(
        "control_overlap", control, pairs, len(scores), f"{each} against others, where the arm averages {draws}"
    )


def _halved(arm: str, pool: Candidates, values: np.ndarray, seed: int) -> list[Figure]:
    """For an arm whose probes take in turn: how much of the choice of one half of them the other half keeps. A full set
    would keep more.

    Args:
        values: by which they take, [samples, probes].
    """
    random = np.random.default_rng(seed)
    sample_ids = rank(arm, pool)["sample_id"].sort().to_numpy()
    sample_ids = np.sort(random.choice(sample_ids, min(len(sample_ids), _MOST_NAMED), replace=False))
    few = _few(pool, sample_ids.tolist())

    def top(probes: np.ndarray) -> set[str] | None:
        return _top(arm, replace(few, rankings={arm: taken_by(arm, few, values, probes)}))

    n_probes = values.shape[1]
    half = n_probes // 2
    drawn = [random.permutation(n_probes) for _ in range(_HALVINGS if half else 0)]
    pairs = [(top(order[:half]), top(order[half : 2 * half])) for order in drawn]
    detail = (
        f"{_HALVINGS} times {half} probes against {half} others, {len(sample_ids):,} samples; as many as the arm "
        "has would keep more"
    )
    return _kept("probe_overlap", OTHER_HALF, pairs, len(sample_ids), detail)


def _kept(
    figure: str, against: str, pairs: Sequence[tuple[set[str] | None, set[str] | None]], n_samples: int, detail: str
) -> list[Figure]:
    """The shared part of each two choices: mean and 95 % range. Nothing where a choice could not be made."""
    shared = [(len(one & other) / len(one), len(other) / n_samples) for one, other in pairs if one and other]
    if not shared or len(shared) < len(pairs):
        return []
    value, chance = (float(each) for each in np.mean(shared, axis=0))
    low, high = np.quantile([kept for kept, _ in shared], [0.025, 0.975]).tolist() if len(shared) > 1 else (None, None)
    return [Figure(figure, against, value, low, high, f"{chance:.2f} would stay by chance alone; {detail}")]
