"""Differences between arms on made-up items: against plain arithmetic, and by how often the interval holds the
truth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from icon_assets.core.evaluation.comparison import (
    BETTER,
    OPEN,
    WORSE,
    Difference,
    as_frame,
    compare,
    headline,
    last_look,
    looks_at,
    main_rows,
)
from icon_assets.core.evaluation.verdicts import interval, verdicts_of
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store

Rows = list[tuple[str, int, str, str, int, float, float]]
COLUMNS = ["arm", "seed", "task", "metric", "item", "value", "weight"]


def frame(*parts: Rows) -> pl.DataFrame:
    return pl.DataFrame([row for part in parts for row in part], COLUMNS, orient="row")


def run(
    arm: str, seed: int, values: Sequence[float], task: str = "t", metric: str = "acc", weights: Sequence[float] = ()
) -> Rows:
    weighed = zip(values, weights or [1.0] * len(values), strict=True)
    return [(arm, seed, task, metric, n, float(v), float(w)) for n, (v, w) in enumerate(weighed)]


def one(found: Sequence[Difference], **wanted: Any) -> Difference:
    (difference,) = [d for d in found if all(getattr(d, name) == value for name, value in wanted.items())]
    return difference


def compared(items: pl.DataFrame, draws: int = 2000, confidence: float = 0.95) -> list[Difference]:
    return compare(items, draws=draws, confidence=confidence)


def flips(rng: np.random.Generator, n: int, share: float) -> list[float]:
    return (rng.random(n) < share).astype(float).tolist()


def test_a_difference_is_that_of_the_means_and_its_interval_that_of_paired_items() -> None:
    rng = np.random.default_rng(1)
    ours = flips(rng, 200, 0.7)
    theirs = flips(rng, 200, 0.5)
    found = one(
        compared(frame(run("icon", 0, ours), run("random", 0, theirs)), draws=20_000), against="random", arm="icon"
    )
    paired = np.array(ours) - np.array(theirs)
    reach = 1.972 * paired.std(ddof=1) / np.sqrt(200)  # t with 199 degrees of freedom
    assert found.difference == pytest.approx(paired.mean())
    assert found.low == pytest.approx(paired.mean() - reach, rel=0.03)
    assert found.high == pytest.approx(paired.mean() + reach, rel=0.03)
    assert (found.n_seeds, found.n_items, found.verdict) == (1, 200, BETTER)


def test_items_that_are_hard_for_both_arms_do_not_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 5, 100)
    ours = hard + rng.normal(0.5, 0.5, 100)
    theirs = hard + rng.normal(0, 0.5, 100)
    found = one(compared(frame(run("icon", 0, ours.tolist()), run("random", 0, theirs.tolist()))), arm="icon")
    assert found.verdict == BETTER
    assert found.high - found.low < 0.5, "unpaired it would be about 2.8"


def test_seeds_that_disagree_widen_the_interval_and_one_seed_knows_nothing_of_it() -> None:
    rng = np.random.default_rng(3)
    base = [flips(rng, 400, 0.5) for _ in range(3)]
    up = [np.clip(np.array(b) + s, -9, 9).tolist() for b, s in zip(base, (0.0, 0.1, 0.2), strict=True)]
    noisy = frame(*(run("icon", s, up[s]) for s in range(3)), *(run("random", s, base[s]) for s in range(3)))
    three = one(compared(noisy), arm="icon")
    assert three.difference == pytest.approx(0.1)
    reach = 4.303 * np.std([0, 0.1, 0.2], ddof=1) / np.sqrt(3)  # t with 2 degrees of freedom: items do not vary here
    assert (three.low, three.high) == pytest.approx((0.1 - reach, 0.1 + reach), rel=0.05)
    assert (three.n_seeds, three.verdict) == (3, OPEN)

    alone = one(compared(noisy.filter(pl.col("seed") == 2)), arm="icon")
    assert (alone.n_seeds, alone.verdict) == (1, BETTER)
    assert verdicts_of(as_frame([alone]))["icon"].endswith("; one seed: a second one could change this")
    assert verdicts_of(as_frame([three]))["icon"].endswith("; 3 seeds")


def test_a_held_out_loss_is_a_ratio_of_sums_and_less_of_it_is_better() -> None:
    rng = np.random.default_rng(4)
    tokens = rng.integers(1, 200, 150).astype(float)
    theirs = tokens * rng.normal(2.0, 0.3, 150)
    ours = theirs - tokens * 0.05 + rng.normal(0, 1, 150)
    parts = [
        run("icon", 0, ours.tolist(), "held_out", "nll_per_token", tokens.tolist()),
        run("random", 0, theirs.tolist(), "held_out", "nll_per_token", tokens.tolist()),
    ]
    found = compared(frame(*parts))
    loss, perplexity = (one(found, arm="icon", metric=metric) for metric in ("nll_per_token", "perplexity"))
    ratios = ours.sum() / tokens.sum(), theirs.sum() / tokens.sum()
    assert loss.difference == pytest.approx(ratios[0] - ratios[1])
    assert perplexity.difference == pytest.approx(np.exp(ratios[0]) - np.exp(ratios[1]))
    assert loss.high < 0
    assert perplexity.high < 0
    assert (loss.verdict, perplexity.verdict) == (BETTER, BETTER)
    back = one(
        compared(
            frame(parts[0], parts[1], run("full", 0, theirs.tolist(), "held_out", "nll_per_token", tokens.tolist()))
        ),
        arm="random",
        against="full",
        metric="perplexity",
    )
    assert (back.difference, back.low, back.high, back.p_value, back.verdict) == (0, 0, 0, 1, OPEN)


def test_arms_that_answer_alike_are_not_distinguishable() -> None:
    rng = np.random.default_rng(5)
    same = [flips(rng, 50, 0.6) for _ in range(2)]
    found = compared(frame(*(run(arm, s, same[s]) for arm in ("icon", "random") for s in range(2))))
    assert {(d.difference, d.low, d.high, d.p_value, d.verdict) for d in found} == {(0.0, 0.0, 0.0, 1.0, OPEN)}


def test_a_worse_arm_is_called_worse_and_the_other_way_round_better() -> None:
    rng = np.random.default_rng(6)
    found = compared(frame(run("random", 0, flips(rng, 300, 0.7)), run("full", 0, flips(rng, 300, 0.4))))
    assert one(found, arm="full", against="random").verdict == WORSE
    assert one(found, arm="random", against="full").verdict == BETTER


def test_only_what_was_measured_on_the_same_items_is_compared() -> None:
    rng = np.random.default_rng(7)
    short = flips(rng, 40, 0.5)
    long = flips(rng, 41, 0.5)
    assert compared(frame(run("icon", 0, long), run("random", 0, short))) == []
    both = frame(run("icon", 0, long), run("icon", 1, short), run("random", 0, short), run("random", 1, short))
    assert one(compared(both), arm="icon").n_seeds == 1, "the seed that has the same items"
    moved = frame(run("icon", 0, short)).with_columns(item=pl.col("item") + 1)
    assert compared(pl.concat([moved, frame(run("random", 0, short))])) == []
    assert compared(frame(run("icon", 0, [1]), run("random", 0, [0]))) == [], "one item shows nothing"
    assert compared(frame(run("icon", 0, short), run("random", 1, short))) == [], "other seeds"
    assert compared(frame()) == []


def test_the_base_model_stands_against_every_seed_and_is_no_arm_itself() -> None:
    rng = np.random.default_rng(8)
    base = flips(rng, 60, 0.5)
    found = compared(frame(run("base", 0, base), *(run("icon", s, flips(rng, 60, 0.6)) for s in (3, 4, 5))))
    assert [(d.arm, d.against, d.n_seeds) for d in found] == [("icon", "base", 3)]


def test_the_mean_over_tasks_weighs_each_task_the_same_and_is_surer_than_one_task() -> None:
    rng = np.random.default_rng(9)
    parts = []
    for task, n, share in (("a", 60, 0.6), ("b", 300, 0.5)):
        parts += [run("icon", 0, flips(rng, n, share + 0.1), task), run("random", 0, flips(rng, n, share), task)]
    found = compared(frame(*parts))
    a, b, mean = (one(found, arm="icon", task=task) for task in ("a", "b", "mean"))
    assert mean.difference == pytest.approx((a.difference + b.difference) / 2)
    assert mean.n_items == 360
    widths = {d.task: d.high - d.low for d in (a, b, mean)}
    assert widths["mean"] == pytest.approx(np.hypot(widths["a"], widths["b"]) / 2, rel=0.05), "tasks vary on their own"
    assert set(as_frame(found).filter(pl.col("metric") == "acc").pipe(headline)["task"]) == {"mean"}


def test_without_a_mean_a_verdict_is_about_the_first_task_by_name_in_whatever_order_they_come() -> None:
    tasks = [*"gcaebfd"]
    rng = np.random.default_rng(9)
    items = [run(arm, 0, flips(rng, 9, 0.5), task) for task in tasks for arm in ("icon", "random")]
    alone = as_frame(compared(frame(*items), 100)).filter(pl.col("task").is_in(tasks))
    orders = [alone.sample(fraction=1, shuffle=True, seed=seed) for seed in range(5)]
    assert [headline(rows)["task"].unique().to_list() for rows in orders] == [["a"]] * 5


def test_no_p_value_is_smaller_than_that_of_as_many_coins() -> None:
    found = one(compared(frame(run("icon", 0, [1] * 4), run("random", 0, [0] * 4))), arm="icon")
    assert found.p_value == 2**-3
    assert found.verdict == OPEN, "four items that all agree are no proof"
    many = one(compared(frame(run("icon", 0, [1] * 12), run("random", 0, [0] * 12))), arm="icon")
    assert many.verdict == BETTER


def test_verdicts_are_corrected_for_the_number_of_arms_and_tasks() -> None:
    """Holm: the smallest p-value must be below 0.05 / n, the next below 0.05 / (n - 1), and nothing after the first
    that is not."""
    rng = np.random.default_rng(10)
    theirs = rng.normal(0, 1, 100)

    def shifted(t: float) -> list[float]:
        noise = rng.normal(0, 1, 100)
        noise -= noise.mean()
        return (theirs + noise + t * noise.std(ddof=1) / 10).tolist()

    alone = frame(run("random", 0, theirs.tolist()), run("icon", 0, shifted(2.3)))
    assert one(compared(alone), arm="icon").verdict == BETTER
    arms = {"icon": 2.3, "rico": 4.0, "lowest": 0.1, "rds": -0.2, "ifd": 0.3}
    found = compared(frame(run("random", 0, theirs.tolist()), *(run(arm, 0, shifted(t)) for arm, t in arms.items())))
    told = {d.arm: d for d in found if d.against == "random"}
    assert {d.n_comparisons for d in told.values()} == {5}
    assert 0.01 < told["icon"].p_value < 0.05
    assert {arm: d.verdict for arm, d in told.items()} == {
        "icon": OPEN,
        "rico": BETTER,
        "lowest": OPEN,
        "rds": OPEN,
        "ifd": OPEN,
    }


def test_the_same_items_give_the_same_figures_whatever_their_order() -> None:
    rng = np.random.default_rng(11)
    items = frame(*(run(arm, s, flips(rng, 30, 0.5)) for arm in ("icon", "random", "full") for s in (0, 1)))
    assert compared(items) == compared(items.sample(fraction=1, shuffle=True, seed=1))
    assert [d.low for d in compared(items)] != [d.low for d in compare(items, draws=2000, confidence=0.95, seed=1)]


@pytest.mark.parametrize(
    ("seeds", "item", "seed", "noise", "low", "high"),
    [
        (1, 1.0, 0.0, 0.0, 0.92, 0.98),
        (3, 1.0, 0.0, 0.0, 0.92, 0.98),
        (3, 1.0, 0.1, 1.0, 0.93, 1.00),
        (3, 0.0, 0.3, 1.0, 0.89, 0.97),
        (5, 0.0, 0.3, 1.0, 0.92, 0.98),
        (3, 0.0, 0.0, 1.0, 0.95, 1.00),
    ],
    ids=["items", "items, 3 seeds", "both", "seeds", "5 seeds", "noise"],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(
    seeds: int, item: float, seed: float, noise: float, low: float, high: float
) -> None:
    """400 made-up experiments of 80 items whose differences vary by item, by seed, and by both: never much too
    narrow."""
    rng = np.random.default_rng(12)
    truth = 0.2
    held = 0
    for _ in range(400):
        apart = (
            truth + rng.normal(0, item, (80, 1)) + rng.normal(0, seed, (1, seeds)) + rng.normal(0, noise, (80, seeds))
        )
        level = rng.normal(0, 1, (80, seeds))
        parts = [
            run(arm, s, (level + add)[:, s].tolist())
            for arm, add in (("icon", apart), ("random", 0))
            for s in range(seeds)
        ]
        found = one(compare(frame(*parts), draws=300, confidence=0.95), arm="icon")
        held += found.low <= truth <= found.high
    assert low <= held / 400 <= high


def _rows(**verdicts_by_rival: Mapping[str, str]) -> list[Difference]:
    return [
        Difference("icon", rival, task, metric, 0.1, -0.1, 0.3, 3, verdict, 10, 0.5, 4)
        for rival, by_metric in verdicts_by_rival.items()
        for (task, metric), verdict in zip((("t", "acc"), ("held_out", "perplexity")), by_metric.values(), strict=True)
    ]


def _told(**verdicts_by_rival: Mapping[str, str]) -> str:
    return verdicts_of(as_frame(_rows(**verdicts_by_rival)))["icon"]


def test_a_gain_is_claimed_only_over_every_rival_in_the_same_thing() -> None:
    gain = {"a": BETTER, "p": OPEN}
    assert _told(random=gain, length_matched=gain, longest=gain) == (
        "a gain: better than random, length_matched and longest in accuracy; "
        "not distinguishable from random, length_matched and longest in held-out perplexity; 3 seeds"
    )
    assert _told(random=gain, longest=gain).startswith(
        "ahead, but not compared with length_matched: better than random"
    )
    for random, longest, claim in (
        ({"a": BETTER, "p": OPEN}, {"a": OPEN, "p": BETTER}, "no gain is shown: "),
        ({"a": BETTER, "p": OPEN}, {"a": BETTER, "p": WORSE}, "a gain in one thing, a loss in another: "),
        (
            {"a": OPEN, "p": WORSE},
            {"a": OPEN, "p": OPEN},
            "a loss: worse than random and length_matched in held-out perplexity; ",
        ),
        (
            {"a": OPEN, "p": OPEN},
            {"a": OPEN, "p": OPEN},
            "no gain is shown: not distinguishable from random, length_matched and longest in accuracy and held-out",
        ),
    ):
        assert _told(random=random, length_matched=random, longest=longest).startswith(claim)


def test_a_verdict_tells_whose_lengths_were_matched_and_how_the_arm_stands_to_full_and_base() -> None:
    seen = {"a": OPEN, "p": WORSE}
    rows = _rows(random=seen, length_matched=seen, full=seen, base={"a": BETTER, "p": BETTER})
    assert verdicts_of(as_frame(rows), "icon")["icon"] == (
        "a loss: worse than random and length_matched in held-out perplexity; not distinguishable from random and "
        "length_matched "
        "in accuracy; better than the base model in accuracy and held-out perplexity; worse than the full pool in "
        "held-out perplexity; not distinguishable from the full pool in accuracy; 3 seeds"
    )
    assert (
        "worse than random and length_matched (lengths of rico) in held-out"
        in verdicts_of(as_frame(rows), "rico")["icon"]
    )


def test_the_mean_over_tasks_is_corrected_over_arms_and_single_tasks_over_both() -> None:
    rng = np.random.default_rng(13)
    parts = [run(arm, 0, flips(rng, 20, 0.5), task) for arm in ("random", "icon", "full") for task in ("a", "b", "c")]
    found = compared(frame(*parts))
    assert {(d.task, d.n_comparisons) for d in found if d.against == "random"} == {
        ("a", 6),
        ("b", 6),
        ("c", 6),
        ("mean", 2),
    }


def on_target(looks: int = 1, gain: float = 0.12, confidence: float = 0.95) -> list[Difference]:
    """Four arms on a target and on one ordinary task; `icon` is better on both by this."""
    rng = np.random.default_rng(5)
    items = []
    for task in ("target", "t"):
        hard = rng.random(300)
        for arm, by in (("icon", gain), ("random", 0.0), ("bm25", 0.0), ("rds", 0.0), ("length_matched", 0.0)):
            items += [run(arm, seed, (hard < 0.5 + by + 0.01 * seed).astype(float).tolist(), task) for seed in (0, 1)]
    return compare(frame(*items), draws=2000, confidence=confidence, looks=looks)


def test_on_a_target_what_one_would_do_otherwise_is_a_rival() -> None:
    found = on_target()
    assert {d.against for d in found if d.task == "target"} == {"random", "length_matched", "bm25", "rds"}
    assert {d.against for d in found if d.task == "t"} == {"random", "length_matched"}
    assert "mean" not in {d.task for d in found}, "a target is no task among others"
    said = verdicts_of(as_frame(found))
    assert said["icon"].startswith(
        "a gain: better than random, length_matched, bm25 and rds in target accuracy; better than random and "
        "length_matched in accuracy"
    )
    without = [d for d in found if "rds" not in (d.arm, d.against)]
    assert verdicts_of(as_frame(without))["icon"].startswith("ahead, but not compared with rds: ")


def test_every_look_at_a_target_widens_its_intervals_and_no_others() -> None:
    first, third, at_a_third = on_target(), on_target(3), on_target(confidence=1 - 0.05 / 3)
    for once, again, wider in zip(first, third, at_a_third, strict=True):
        expected = wider if once.task == "target" else once
        assert (again.low, again.high) == pytest.approx((expected.low, expected.high))
    assert "look 3 at the target" in verdicts_of(as_frame(third), looks=3)["icon"]
    assert "look" not in verdicts_of(as_frame(first), looks=1)["icon"]


def test_what_holds_at_the_first_look_need_not_hold_after_many() -> None:
    def verdict(looks: int) -> str:
        found = on_target(looks, gain=0.06)
        return one(found, task="target", arm="icon", against="random").verdict

    assert verdict(1) == BETTER
    assert verdict(10_000) == OPEN


def test_looks_are_counted_by_results_and_by_the_names_of_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def look(results: str, *files: str) -> None:
        recipe = Recipe("leaderboard", "", (), {})
        summary = {"results": results, "target": list(files), "looks": looks_at(store, files)}
        ledger.record(store, recipe, results, "run", summary)

    assert looks_at(store, []) == 0
    assert (looks_at(store, ["a.jsonl"]), last_look(store)) == (1, 0)
    look("one", "a.jsonl")
    look("one", "a.jsonl")
    assert looks_at(store, ["a.jsonl"]) == 2, "the same results again are no new look"
    look("two", "a.jsonl", "b.jsonl")
    assert (looks_at(store, ["a.jsonl"]), looks_at(store, ["b.jsonl"]), looks_at(store, ["c.jsonl"])) == (3, 2, 1)
    assert last_look(store) == 2


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((-4.63e-18, -0.00707, 0.00707), "+0.0000, -0.0071 to +0.0071"),
        ((-0.0246, -0.0339, -0.0153), "-0.0246, -0.0339 to -0.0153"),
        ((12.0, -30.5, 54.5), "+12, -30 to +54"),
        ((0.0, 0.0, 0.0), "+0.000, +0.000 to +0.000"),
    ],
)
def test_an_interval_is_told_as_exactly_as_it_is_known(figures: tuple[float, ...], text: str) -> None:
    assert interval(dict(zip(("difference", "low", "high"), figures, strict=True))) == text


BOARD = [
    ("held_out", "nll_per_token"),
    ("held_out", "perplexity"),
    ("held_out/facts", "perplexity"),
    ("lambada", "perplexity"),
    ("sums", "acc"),
    ("sums", "acc_norm"),
    ("sums/easy", "acc"),
]


def test_the_board_shows_what_the_headline_is_made_of_and_all_whole_tasks_where_that_was_not_measured() -> None:
    def shown(rows: Sequence[tuple[str, str]]) -> list[tuple[Any, ...]]:
        return main_rows(pl.DataFrame(rows, {"task": pl.String, "metric": pl.String}, orient="row")).rows()

    assert shown(BOARD) == [("held_out", "perplexity"), ("sums", "acc")]
    others = [row for row in BOARD if row not in shown(BOARD)]
    assert shown(others) == [("held_out", "nll_per_token"), ("lambada", "perplexity"), ("sums", "acc_norm")]
    assert shown([]) == []


def test_every_headline_is_on_the_board_by_itself_or_in_its_mean() -> None:
    rows = [Difference("icon", "random", task, metric, 1.0, 0.0, 2.0, 2, OPEN, 4, 0.5, 1) for task, metric in BOARD]
    board = main_rows(as_frame(rows))
    said = headline(as_frame(rows))
    assert {*said.select("task", "metric").rows()} <= {*board.select("task", "metric").rows()}
    mean = replace(rows[4], task="mean")
    said = headline(as_frame([*rows, mean]))
    assert {*said.select("task", "metric").rows()} == {("mean", "acc"), ("held_out", "perplexity")}
