"""Is one arm better than another? Paired bootstrap of the difference over evaluation items and over training seeds.

Both arms are compared on the same resampled items and on the same seeds, so that common difficulty cancels out. The
standard error combines the variance over items and the variance over seeds. The interval is Student's, with few degrees
of freedom because there are few seeds (Satterthwaite). With one seed, the variance over seeds is unknown. The interval
then covers the items only, and reports say so.

With many comparisons, some look better by chance. A verdict therefore holds after Holm's correction, while intervals
are those of each comparison alone. The headline metrics, mean accuracy over tasks and perplexity on all held-out data,
are corrected together, over arms and both metrics. Single tasks and strata are exploratory, and are corrected over the
arms and tasks of each metric. There is no correction over the baselines, because a gain must hold against each of
them.

On a sealed target (`evaluation.target`), whoever looks again after a change tries again. With k looks so far, each
interval and verdict there is at level (1 - confidence) / k: Bonferroni's correction over the looks (Dunn 1961). It
covers looks whose questions were fixed before. Questions that follow from what was seen can overfit further (Dwork et
al. 2015, arXiv 1506.02629), so a new file is better than many looks."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from icon_assets.core.digests import digest
from icon_assets.core.evaluation.metric import NLL, PERPLEXITY
from icon_assets.core.inputs.evaluation_files import HELD_OUT, TARGET
from icon_assets.core.store.tables import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BASE = "base"
MEAN = "mean"
ACCURACY = "acc"
BETTER = "better"
WORSE = "worse"
OPEN = "not distinguishable"
AGAINST = ("random", "length_matched", "longest", "bm25", "rds", "full", BASE)
# A gain is claimed only over all of these together: selections that cost nothing.
RIVALS = AGAINST[:3]
# On a target, these are what one would do otherwise: they read the probes, and cost little.
TARGET_RIVALS = ("random", "length_matched", "bm25", "rds")
_ON_TARGETS_ONLY = TARGET_RIVALS[2:]
LESS_IS_BETTER = frozenset({NLL, PERPLEXITY})
_CELLS = 4_000_000  # counts of resampled items at a time: bounds memory


@dataclass(frozen=True)
class Difference:
    """`arm` minus `against` in one metric of one task; the fields are those of the table `leaderboard_differences`."""

    arm: str
    against: str
    task: str
    metric: str
    difference: float
    low: float
    high: float
    n_seeds: int
    verdict: str
    n_items: int
    p_value: float
    n_comparisons: int


@dataclass(frozen=True)
class _Drawn:
    """A difference per seed, and the deviation of their mean for each draw of items."""

    by_seed: "Array"
    moved: "Array"
    n_items: int
    n_tasks: int = 1


_Run = tuple[str, int]
_Pair = tuple[str, str]


def counts(store: Store, checkpoint_id: str) -> bool:
    """Whether results of this checkpoint are among those that are compared."""
    counting = "SELECT count(*) > 0 FROM current_results WHERE checkpoint_id = $id"
    return store.query(counting, {"id": checkpoint_id}).item()


def current_items(store: Store) -> pl.DataFrame:
    """Items of all results that count on the leaderboard, with arm and seed."""
    return store.query(
        """
        SELECT r.arm, r.seed, i.task, i.metric, i.item, i.value, i.weight FROM eval_items i
        JOIN (SELECT DISTINCT checkpoint_id, arm, seed FROM current_results) r USING (checkpoint_id)
        ORDER BY ALL
        """
    )


def looks_at(store: Store, files: Sequence[str]) -> int:
    """How many comparisons of different results on these files of a target there are, the coming one included. 0
    without files. Files are known by their names: a changed file of the same name has been looked at already."""
    seen = store.query(
        """
        SELECT DISTINCT summary->>'results' AS results FROM delta.events
        WHERE asset = 'leaderboard' AND len(list_intersect((summary->'target')::VARCHAR[], $files::VARCHAR[])) > 0
        UNION FROM delta.results_now
        """,
        {"files": list(files)},
    )
    return seen.height if files else 0


def last_look(store: Store) -> int:
    """The number of the look at a target that the stored differences are from; 0 without a target."""
    newest = "SELECT coalesce(max_by(summary->>'looks', seq)::BIGINT, 0) FROM delta.events WHERE asset = 'leaderboard'"
    return store.query(newest).item()


def rivals_on(task: str) -> tuple[str, ...]:
    """The arms that a gain in this task must hold against."""
    return TARGET_RIVALS if is_target(task) else RIVALS


def is_target(task: str) -> bool:
    return task == TARGET or task.startswith(f"{TARGET}/")


def compare(items: pl.DataFrame, *, draws: int, confidence: float, looks: int = 1, seed: int = 0) -> list[Difference]:
    """Every arm against each of `AGAINST` (`bm25` and `rds` on a target only), in every metric of every task and, over
    tasks, in their mean.

    Two runs are compared only where they were measured on the same items. `base`, which has no seeds, is compared with
    each.

    Args:
        items: columns arm, seed, task, metric, item, value, weight; a run's figure is sum(value) / sum(weight).
        looks: at a target, this one included.

    Returns:
        By metric, `against`, task and arm.
    """
    judged: list[Difference] = []
    measured = items.partition_by("metric", "task", as_dict=True, maintain_order=False)
    by_item = {str(metric) for metric, _ in measured}
    for metric in sorted(by_item | ({PERPLEXITY} if NLL in by_item else set())):
        source = NLL if metric == PERPLEXITY else metric
        tasks = {str(task): rows for (name, task), rows in measured.items() if name == source}
        drawn = {task: _drawn_pairs(rows, metric, draws, seed) for task, rows in sorted(tasks.items())}
        whole = [pairs for task, pairs in drawn.items() if not is_target(task)]
        if source != NLL and len(whole) > 1:
            drawn[MEAN] = _means(whole)
        judged += [
            _judged(pair, task, metric, each, draws, 1 - (1 - confidence) / _times(task, looks), seed)
            for task, pairs in drawn.items()
            for pair, each in pairs.items()
        ]
    corrected = _corrected(judged, 1 - confidence, looks)
    return sorted(corrected, key=lambda d: (d.metric, AGAINST.index(d.against), d.task, d.arm))


def _times(task: str, looks: int) -> int:
    return max(1, looks) if is_target(task) else 1


def _drawn_pairs(rows: pl.DataFrame, metric: str, draws: int, seed: int) -> dict[_Pair, _Drawn]:
    """Differences in one metric of one task, for every two arms to compare."""
    pairs: dict[_Pair, _Drawn] = {}
    stream = [seed, int(digest(rows["task"][0])[:15], 16)]
    for runs, values, weights in _same_items(rows):
        if len(weights) < 2:
            continue
        figures, moved = _resampled(values, weights, metric == PERPLEXITY, draws, stream)
        column = {run: index for index, run in enumerate(runs)}
        for pair, own, other in _paired_columns(column, _baselines(rows["task"][0])):
            by_seed = figures[own] - figures[other]
            # The mean square of n resampled items is (n - 1) / n of its correct value.
            stretch = np.sqrt(len(weights) / (len(weights) - 1))
            away = (moved[:, own] - moved[:, other]).mean(1) - by_seed.mean()
            pairs.setdefault(pair, _Drawn(by_seed, away * stretch, len(weights)))
    return pairs


def _baselines(task: str) -> list[str]:
    return [each for each in AGAINST if is_target(task) or each not in _ON_TARGETS_ONLY]


def _same_items(rows: pl.DataFrame) -> Iterator[tuple[list[_Run], "Array", "Array"]]:
    """Runs that were measured on the same items, largest group first, with their values [items, runs] and the
    weights."""
    groups: defaultdict[bytes, list[tuple[_Run, Array, Array]]] = defaultdict(list)
    for (arm, seed), run in sorted(rows.partition_by("arm", "seed", as_dict=True).items()):
        run = run.sort("item")
        weights = run["weight"].to_numpy()
        groups[run["item"].to_numpy().tobytes() + weights.tobytes()].append(
            ((str(arm), int(seed)), run["value"].to_numpy(), weights)
        )
    for group in sorted(groups.values(), key=len, reverse=True):
        yield [run for run, _, _ in group], np.stack([values for _, values, _ in group], axis=1), group[0][2]


def _resampled(
    values: "Array", weights: "Array", exponential: bool, draws: int, stream: Sequence[int]
) -> tuple["Array", "Array"]:
    """The figure of each run, and the same over resampled items [draws, runs]."""
    n = len(weights)
    rng = np.random.default_rng(stream)
    parts = []
    for start in range(0, draws, step := max(1, _CELLS // n)):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start)).astype(np.float64)
        parts.append((counts @ values) / (counts @ weights)[:, None])
    figures = values.sum(0) / weights.sum()
    moved = np.concatenate(parts)
    return (np.exp(figures), np.exp(moved)) if exponential else (figures, moved)


def _paired_columns(
    column: Mapping[_Run, int], baselines: Sequence[str]
) -> Iterator[tuple[_Pair, list[int], list[int]]]:
    """For every two arms to compare: the columns of their runs, seed by seed."""
    seeds: defaultdict[str, list[int]] = defaultdict(list)
    for arm, seed in sorted(column):
        seeds[arm].append(seed)
    for arm in sorted(seeds.keys() - {BASE}):
        for against in (other for other in baselines if other in seeds and other != arm):
            shared = [seed for seed in seeds[arm] if against == BASE or seed in seeds[against]]
            others = [column[against, seeds[BASE][0] if against == BASE else seed] for seed in shared]
            if shared:
                yield (arm, against), [column[arm, seed] for seed in shared], others


def _means(tasks: Iterable[Mapping[_Pair, _Drawn]]) -> dict[_Pair, _Drawn]:
    """The mean over tasks, for pairs that all tasks have with the same number of seeds. Items are drawn separately per
    task, seeds are not."""
    every = list(tasks)
    means = {}
    for pair in every[0]:
        parts = [task[pair] for task in every if pair in task]
        if len(parts) == len(every) and len({len(part.by_seed) for part in parts}) == 1:
            by_seed = np.mean([part.by_seed for part in parts], axis=0)
            moved = np.mean([part.moved for part in parts], axis=0)
            means[pair] = _Drawn(by_seed, moved, sum(part.n_items for part in parts), len(parts))
    return means


def _judged(pair: _Pair, task: str, metric: str, drawn: _Drawn, draws: int, confidence: float, seed: int) -> Difference:
    """Difference, interval and p-value of one comparison alone. The verdict is not corrected yet."""
    from scipy import stats

    difference = float(drawn.by_seed.mean())
    n_seeds = len(drawn.by_seed)
    of_seeds = _other_seeds(drawn.by_seed, draws, seed)
    variances = [float(drawn.moved.var()), float(of_seeds.var())]
    error, freedom = _error_and_freedom(variances, [drawn.n_items - drawn.n_tasks, max(n_seeds - 1, 1)])
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error else float(difference == 0)
    # If all items agree, there is no spread. Even then, n items can't say more than n coin tosses.
    p_value = min(1.0, max(p_value, 2.0 ** (1 - drawn.n_items)))
    good = difference < 0 if metric in LESS_IS_BETTER else difference > 0
    return Difference(
        *pair,
        task,
        metric,
        difference,
        difference - reach,
        difference + reach,
        n_seeds,
        BETTER if good else WORSE,
        drawn.n_items,
        p_value,
        1,
    )


def _other_seeds(by_seed: "Array", draws: int, seed: int) -> "Array":
    """The deviation of the mean over seeds for each draw of n - 1 of n seeds, which gives it the variance of a mean of
    n."""
    n = len(by_seed)
    if n < 2:
        return np.zeros(draws)
    picked = np.random.default_rng(seed).integers(n, size=(draws, n - 1))
    return by_seed[picked].mean(1) - by_seed.mean()


def _error_and_freedom(variances: Sequence[float], freedoms: Sequence[int]) -> tuple[float, float]:
    """Standard error of a sum of independent parts, and its degrees of freedom by Satterthwaite."""
    total = sum(variances)
    if not total:
        return 0.0, float(freedoms[0])
    return total**0.5, total**2 / sum(v**2 / freedom for v, freedom in zip(variances, freedoms, strict=True))


def _corrected(found: Sequence[Difference], level: float, looks: int) -> list[Difference]:
    """Verdicts after Holm's step-down over each family. Comparisons that do not pass are not distinguishable."""
    is_main = _headline({each.task for each in found if each.metric == ACCURACY})
    families: defaultdict[tuple[str, str], list[Difference]] = defaultdict(list)
    for each in found:
        whole = each.task in {MEAN, HELD_OUT, TARGET}
        families[each.against, "" if is_main(each.metric, each.task) else f"{each.metric} {whole}"].append(each)
    corrected = []
    for family in families.values():
        told = True
        ordered = sorted(family, key=lambda d: d.p_value * _times(d.task, looks))
        for left, each in zip(range(len(family), 0, -1), ordered, strict=True):
            told = told and each.p_value * _times(each.task, looks) <= level / left
            corrected.append(replace(each, n_comparisons=len(family), verdict=each.verdict if told else OPEN))
    return corrected


def _headline(tasks: Collection[str]) -> Callable[[str, str], bool]:
    """Whether a metric of a task is a headline metric: mean accuracy over these tasks (or that of the only or first
    one), held-out perplexity, and both of a target."""
    main = MEAN if MEAN in tasks else min((task for task in tasks if not is_target(task)), default="")
    main_metrics = {(ACCURACY, main), (ACCURACY, TARGET), (PERPLEXITY, HELD_OUT), (PERPLEXITY, TARGET)}
    return lambda metric, task: (metric, task) in main_metrics


def main_rows(board: pl.DataFrame) -> pl.DataFrame:
    """The headline rows of the leaderboard: accuracy of each whole task, and perplexity of held-out samples and of a
    target. If none of them was measured, every metric of whole tasks. Parts of a task have names such as
    `held_out/facts`."""
    task = pl.col("task")
    metric = pl.col("metric")
    whole = board.filter(~task.str.contains("/", literal=True))
    main = whole.filter((metric == ACCURACY) | (task.is_in([HELD_OUT, TARGET]) & (metric == PERPLEXITY)))
    return main if main.height else whole


def as_frame(differences: Sequence[Difference]) -> pl.DataFrame:
    """Rows of the table `leaderboard_differences`."""
    kinds = {"str": pl.String, "float": pl.Float64, "int": pl.Int64}
    schema = {name: kinds[each.type.__name__] for name, each in Difference.__dataclass_fields__.items()}
    return pl.DataFrame([asdict(each) for each in differences], schema=schema)


def differences_of(store: Store) -> pl.DataFrame:
    """The stored table `leaderboard_differences`."""
    return store.query("FROM leaderboard_differences ORDER BY metric, against, task, arm")


def headline(differences: pl.DataFrame) -> pl.DataFrame:
    """The rows of the headline metrics: mean accuracy over tasks (or that of the only one), held-out perplexity, and
    both of a target."""
    is_main = _headline(set(differences.filter(pl.col("metric") == ACCURACY)["task"]))
    return differences.filter([is_main(*each) for each in differences.select("metric", "task").iter_rows()])
