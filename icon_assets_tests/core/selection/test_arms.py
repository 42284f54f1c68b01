"""Arms."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.errors import IconError
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.selection.arm import (
    check_arms,
    controls_needed,
    drawn_for,
    draws,
    made_with,
    rank,
    tables_needed,
    work_owed,
)
from icon_assets.core.selection.candidates import TOKENS, Candidates
from icon_assets.core.selection.choose import Subset, select, subset_size, token_budget, token_figures
from icon_assets.core.selection.per_probe import PerProbe
from icon_assets.core.selection.turns import shares, take_in_turn
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, SelectionSettings
from icon_assets_tests.conftest import put_embeddings
from icon_assets_tests.core.scoring.test_peers import KEY

POOL = pl.DataFrame(
    {
        "sample_id": [f"s{i:02}" for i in range(20)],
        "n_response_chars": [(i * 7) % 20 for i in range(20)],
        "n_tokens": [10 + (i * 9) % 20 for i in range(20)],
        "none": [((i * 3) % 20) / 10 - 1 for i in range(20)],
        "random_tokens": [((i * 11) % 20) / 10 - 1 for i in range(20)],
        "random_chars": [None] * 20,
        "peers": [((i * 13) % 20) / 10 - 1 for i in range(20)],
        "perplexity": [1.0 + (i * 17) % 20 for i in range(20)],
        "ifd": [0.1 * ((i * 19) % 20) + 0.05 for i in range(20)],
        "predicted": [((i * 7) % 20) / 20 for i in range(20)],
        TOKENS: [20 + (i * 9) % 20 for i in range(20)],
    },
    schema_overrides={"random_chars": pl.Float64},
)


def given_values(values: dict[str, np.ndarray], strata: list[str], pool_strata: list[str]) -> PerProbe:
    """Values for single probes without a store."""
    found = PerProbe(Store(Path()), KEY, ControlSettings(), 0, values)
    probes = pl.DataFrame({"probe_id": [f"p{i}" for i in range(len(strata))], "stratum": strata})
    known = pl.DataFrame({"sample_id": POOL["sample_id"], "stratum": pool_strata})
    vars(found).update(sample_ids=POOL["sample_id"].to_list(), probes=probes, strata=known)
    return found


NUMBERS = np.random.default_rng(11)
KINDS = ("none", "random_tokens", "peers", "cosine", "bm25")
VALUES = {kind: NUMBERS.permuted(np.tile(np.arange(20) / 20, (4, 1)), axis=1).T for kind in KINDS}
GIVEN = given_values(VALUES, ["news", "talk", "news", "maths"], ["news", "code", "code", "code"] * 5)
ONES = pl.col("sample_id").is_not_null().cast(pl.Float64)
IN_TURN_ARMS = ("icon_in_turn", "rds", "bm25", "combined")
RANKING = [
    "random",
    "length_matched",
    "longest",
    "perplexity",
    "ifd",
    "icon",
    "rico",
    "icon_peers",
    "icon_selector",
    "icon_stratified",
    "icon_in_turn",
    "rds",
    "bm25",
    "combined",
    "oracle",
    "lowest",
]


def of(*arms: str, **values: Any) -> SelectionSettings:
    return SelectionSettings(arms=arms, **values)


def choose(
    arm: str, fraction: float, pool: pl.DataFrame = POOL, embeddings: Embeddings | None = None, **values: Any
) -> Subset:
    return select(arm, Candidates(pool, of(arm, fraction=fraction, **values), embeddings, GIVEN))


def ids(subset: Subset) -> list[str]:
    return subset.rows["sample_id"].to_list()


@pytest.mark.parametrize("arm", RANKING)
def test_an_arm_takes_its_share_once_each_best_first(arm: str) -> None:
    rows = choose(arm, 0.15).rows
    assert rows["rank"].to_list() == [1, 2, 3]
    assert rows["sample_id"].n_unique() == 3
    assert rows["reason"].null_count() == 0


@pytest.mark.parametrize("arm", RANKING)
@pytest.mark.parametrize("budget", ["samples", "tokens"])
def test_a_larger_fraction_contains_the_smaller_one(arm: str, budget: str) -> None:
    tops = [ids(choose(arm, fraction, budget=budget)) for fraction in (0.1, 0.25, 0.5, 1)]
    assert sorted(tops[-1]) == POOL["sample_id"].to_list()
    for small, large in pairwise(tops):
        assert large[: len(small)] == small


@pytest.mark.parametrize("arm", ["full", *RANKING])
def test_the_order_of_the_rows_does_not_matter(arm: str) -> None:
    shuffled = POOL.sample(fraction=1, shuffle=True, seed=5)
    assert ids(choose(arm, 0.4, shuffled)) == ids(choose(arm, 0.4))


@pytest.mark.parametrize(
    "arm", sorted(set(RANKING) - {"random", "length_matched", "icon_stratified", "perplexity", *IN_TURN_ARMS, "oracle"})
)
def test_ties_are_broken_by_the_id(arm: str) -> None:
    columns = ["n_response_chars", "none", "random_tokens", "peers", "perplexity", "ifd", "predicted"]
    equal = POOL.with_columns(**dict.fromkeys(columns, ONES)).with_columns(ifd=pl.lit(0.5))
    chosen = ids(choose(arm, 0.25, equal.sample(fraction=1, shuffle=True, seed=1)))
    assert chosen == sorted(chosen)


@pytest.mark.parametrize(
    ("fraction", "of", "size"), [(0.07, 100, 7), (0.15, 387, 59), (0.29, 1000, 290), (0.01, 3, 1), (1, 9, 9)]
)
def test_a_size_is_the_fraction_as_it_is_written_rounded_up(fraction: float, of: int, size: int) -> None:
    assert subset_size("icon", of, fraction) == size


def test_full_takes_everything_whatever_the_fraction() -> None:
    assert choose("full", 0.15).rows.height == 20
    assert choose("full", 0.15, budget="tokens", diversity=0.5).rows.height == 20


def test_icon_takes_the_highest_and_lowest_the_lowest_contributions() -> None:
    best, worst = (choose(arm, 0.25).rows["score"].to_list() for arm in ("icon", "lowest"))
    assert best == sorted(POOL["none"], reverse=True)[:5]
    assert worst == sorted(POOL["none"])[:5]


@pytest.mark.parametrize(
    ("arm", "column"), [("rico", "random_tokens"), ("icon_peers", "peers"), ("icon_selector", "predicted")]
)
def test_an_arm_ranks_by_its_own_score(arm: str, column: str) -> None:
    assert choose(arm, 0.25).rows["score"].to_list() == sorted(POOL[column], reverse=True)[:5]


def test_random_depends_on_the_seed_and_survives_growth_of_the_pool() -> None:
    chosen = ids(choose("random", 0.5))
    assert chosen != ids(choose("random", 0.5, seed=1))
    grown = pl.concat([POOL, POOL.with_columns(sample_id=pl.lit("new") + pl.col("sample_id"))])
    kept = [sample_id for sample_id in ids(choose("random", 1, grown)) if sample_id in chosen]
    assert kept == chosen


def test_perplexity_goes_from_the_middle_outwards() -> None:
    assert sorted(choose("perplexity", 0.2).rows["score"]) == [9, 10, 11, 12]
    assert set(choose("perplexity", 1).rows["score"].tail(2)) == {1, 20}


def test_ifd_takes_the_highest_below_one_and_the_rest_last() -> None:
    scores = choose("ifd", 1).rows["score"].to_list()
    assert scores[:3] == pytest.approx([0.95, 0.85, 0.75])
    assert scores[10:12] == pytest.approx([1.05, 1.15])


@given(st.data())
def test_strata_keep_the_proportions_of_the_pool_at_every_size(data: st.DataObject) -> None:
    """Every class of lengths has its share, however contribution goes with length."""
    n = data.draw(st.integers(10, 120))
    strata = data.draw(st.integers(2, 5))
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    pool = pl.DataFrame(
        {"sample_id": [f"{i:03}" for i in range(n)], "n_tokens": lengths, "none": [float(x) for x in lengths]}
    )
    fraction = data.draw(st.floats(0.05, 1))
    chosen = choose("icon_stratified", fraction, pool, length_strata=strata).rows.join(pool, on="sample_id")
    edges = np.quantile(lengths, np.arange(1, strata) / strata)
    for stratum in range(strata):
        due = fraction * sum(np.searchsorted(edges, each, side="right") == stratum for each in lengths)
        got = sum(np.searchsorted(edges, each, side="right") == stratum for each in chosen["n_tokens"])
        assert abs(got - due) <= 1 + strata / 2, "as near as whole samples come, in every class at once"


def test_within_a_stratum_the_best_are_taken() -> None:
    pool = pl.DataFrame(
        {
            "sample_id": [f"{i:02}" for i in range(20)],
            "n_tokens": [1] * 10 + [9] * 10,
            "none": [i / 10 for i in range(20)],
        }
    )
    assert sorted(ids(choose("icon_stratified", 0.2, pool, length_strata=2))) == ["08", "09", "18", "19"]


def long_pool(n: int = 3000) -> pl.DataFrame:
    """Contribution goes with length, and much with chance."""
    draw = np.random.default_rng(4)
    lengths = np.exp(draw.normal(5, 0.7, n)).astype(int) + 5
    score = np.log(lengths) + draw.normal(0, 0.7, n)
    return pl.DataFrame({"sample_id": [f"{i:05}" for i in range(n)], "n_tokens": lengths, "none": score})


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two distribution functions."""
    at = np.union1d(one, other)
    return float(
        np.abs(
            np.searchsorted(np.sort(one), at, "right") / len(one)
            - np.searchsorted(np.sort(other), at, "right") / len(other)
        ).max()
    )


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.3])
def test_length_matched_has_the_lengths_of_its_reference_and_else_draws_at_random(fraction: float) -> None:
    pool = long_pool()
    lengths = dict(pool.select("sample_id", "n_tokens").iter_rows())
    subsets = {arm: ids(choose(arm, fraction, pool)) for arm in ("icon", "length_matched", "random")}
    icon, matched, random = (np.array([lengths[each] for each in subset]) for subset in subsets.values())
    assert distance(icon, matched) < 0.03
    assert distance(icon, random) > 0.2, "here it matters"
    assert len(matched) == len(icon)
    with_random = len({*subsets["random"]} & {*subsets["length_matched"]}) / len(matched)
    assert abs(with_random - fraction) < 0.1, "another draw than that of the arm random"
    # Of each bin it takes as many as the reference, at random: so many recur by chance.
    edges = np.quantile(pool["n_tokens"], np.arange(1, 150) / 150)
    taken = np.bincount(np.searchsorted(edges, icon, side="right"), minlength=150)
    there = np.bincount(np.searchsorted(edges, pool["n_tokens"], side="right"), minlength=150)
    expected = float((taken**2 / np.maximum(there, 1)).sum())
    recurring = len({*subsets["icon"]} & {*subsets["length_matched"]})
    assert abs(recurring - expected) < 4 * math.sqrt(expected)


def test_length_matched_follows_the_arm_that_the_settings_name_and_the_seed() -> None:
    pool = long_pool().with_columns(n_response_chars=-pl.col("n_tokens"))
    shortest = choose("length_matched", 0.1, pool, reference="longest").rows.join(pool, on="sample_id")
    assert shortest["n_tokens"].max() <= np.quantile(pool["n_tokens"], 0.12)  # pyright: ignore
    assert ids(choose("length_matched", 0.1, pool)) != ids(choose("length_matched", 0.1, pool, seed=1))


@pytest.mark.parametrize("arm", RANKING)
@given(fraction=st.floats(0.05, 1))
def test_a_token_budget_is_spent_from_the_top_and_never_exceeded(arm: str, fraction: float) -> None:
    rows = choose(arm, fraction, budget="tokens").rows.join(POOL, on="sample_id", maintain_order="left")
    budget = fraction * int(POOL[TOKENS].sum())
    assert rows[TOKENS].sum() <= budget or rows.height == 1
    following = rank(arm, Candidates(POOL, of(arm), per_probe=GIVEN))["sample_id"][
        rows.height : rows.height + 1
    ].to_list()
    left = int(POOL.filter(pl.col("sample_id").is_in(following))[TOKENS].sum())
    assert rows.height == 20 or int(rows[TOKENS].sum()) + left > budget, "the next one would not have fitted"


def test_near_duplicates_are_passed_over_and_the_size_is_kept(tmp_path: Path) -> None:
    """Twenty samples in five directions: of each direction only the best one passes."""
    vectors = {sample_id: np.eye(5)[i // 4] + 0.01 * (i % 4) for i, sample_id in enumerate(POOL["sample_id"])}
    embeddings = put_embeddings(Store(tmp_path), vectors)
    plain = choose("icon", 0.25)
    diverse = choose("icon", 0.25, POOL, embeddings, diversity=0.9)
    directions = [int(sample_id[1:]) // 4 for sample_id in ids(diverse)]
    assert sorted(directions) == [0, 1, 2, 3, 4]
    assert len({int(sample_id[1:]) // 4 for sample_id in ids(plain)}) < 5, "here it matters"
    order = ids(choose("icon", 1))
    first = [next(s for s in order if int(s[1:]) // 4 == direction) for direction in range(5)]
    assert ids(diverse) == sorted(first, key=order.index)
    assert diverse.skipped == order.index(ids(diverse)[-1]) + 1 - 5
    with pytest.raises(
        IconError, match=r"6 samples of 20, .* 15 are too similar to a better one; raise selection\.diversity"
    ):
        choose("icon", 0.3, POOL, embeddings, diversity=0.9)


def test_diversity_without_embeddings_says_what_to_make(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="20 of 20 samples have no embedding; materialize sample_features"):
        choose("icon", 0.25, POOL, Embeddings(Store(tmp_path), "key"), diversity=0.9)


def test_equal_choices_have_equal_ids_and_different_ones_different() -> None:
    ids = [
        each.subset_id for each in (choose("icon", 0.5), choose("icon", 0.5, POOL[::-1], seed=9), choose("icon", 0.4))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_an_arm_whose_scores_are_missing_says_what_to_do() -> None:
    with pytest.raises(IconError, match="arm rico_chars: needs 10 samples of 20, but 0 have a score"):
        choose("rico_chars", 0.5)
    with pytest.raises(IconError, match="materialize raw_pool"):
        choose("full", 0.5, POOL.clear())


@pytest.mark.parametrize(
    ("arm", "column", "line"),
    [
        ("icon", "none", r"but 4 have a score under control none; .*scoring\.direct_share .*icon_selector"),
        ("icon_stratified", "none", "but 4 have a score under control none"),
        ("length_matched", "none", "but 4 have a score under control none"),
        ("icon_selector", "predicted", "but 4 have a row in predicted_scores; materialize predicted_scores"),
        ("perplexity", "perplexity", "but 4 have a row in sample_features"),
    ],
)
def test_too_few_scored_samples_are_not_made_up_for(arm: str, column: str, line: str) -> None:
    few = POOL.with_columns(pl.when(pl.int_range(20) < 4).then(column).alias(column))
    assert choose(arm, 0.2, few).rows.height == 4
    with pytest.raises(IconError, match=f"^arm {arm}: needs 5 samples of 20, {line}"):
        choose(arm, 0.25, few)
    with pytest.raises(IconError, match=rf"^arm {arm}: needs \d+ training tokens of 20, but 4"):
        choose(arm, 0.5, few, budget="tokens")


def test_arms_of_the_settings_are_checked_before_anything_runs() -> None:
    check_arms(of("full", "rico", "icon_peers"), ("none", "random_tokens"))
    with pytest.raises(IconError, match="'best' is not an arm"):
        check_arms(of("best"), ("none",))
    with pytest.raises(IconError, match=r"selection\.arms: 'rico' .*add it to controls\.kinds"):
        check_arms(of("rico"), ("none",))
    check_arms(of("icon", reference="best"), ("none",))
    with pytest.raises(IconError, match=r"selection\.reference: 'best' is not an arm"):
        check_arms(of("length_matched", reference="best"), ("none",))
    with pytest.raises(IconError, match=r"selection\.reference: 'rico' ranks by control 'random_tokens'"):
        check_arms(of("length_matched", reference="rico"), ("none",))
    with pytest.raises(IconError, match=r"selection\.reference: length_matched copies the lengths of a different arm"):
        check_arms(of("length_matched", reference="length_matched"), ("none",))


def test_an_arm_says_what_it_needs_and_what_it_is_made_with() -> None:
    settings = of("length_matched", reference="icon_peers", diversity=0.9, length_strata=7)
    assert controls_needed("length_matched", settings) == {"peers"}
    assert tables_needed("rds", settings) == {"sample_features", "probe_features"}
    assert tables_needed("random", settings) == {"sample_features"}
    assert tables_needed("full", settings) == tables_needed("icon", of("icon")) == set()
    assert made_with("icon", of("icon", length_strata=9)) == {"fraction": 0.15}, "what it does not use does not count"
    assert made_with("icon_stratified", settings) == {"fraction": 0.15, "diversity": 0.9, "length_strata": 7}
    assert made_with("length_matched", settings)["reference"] == "icon_peers"


def taken(values: np.ndarray) -> list[str]:
    return [POOL["sample_id"][int(row)] for row in take_in_turn(values)[0]]


def test_probes_take_in_turn_where_the_arm_or_the_setting_says_so() -> None:
    for arm, kind in (("icon", "none"), ("rico", "random_tokens"), ("icon_peers", "peers")):
        assert ids(choose(arm, 1, aggregate="in_turn")) == taken(VALUES[kind])
        assert ids(choose(arm, 1, aggregate="mean")) == ids(choose(arm, 1)) != taken(VALUES[kind])
    assert ids(choose("icon_in_turn", 1, aggregate="mean")) == taken(VALUES["none"])
    assert ids(choose("bm25", 1)) == ids(choose("bm25", 1, aggregate="in_turn")) == taken(VALUES["bm25"])
    by_mean = ids(choose("bm25", 1, aggregate="mean"))
    means = dict(zip(POOL["sample_id"], VALUES["bm25"].mean(axis=1), strict=True))
    assert by_mean == sorted(means, key=lambda each: (-means[each], each))
    first = choose("icon_in_turn", 0.05).rows
    assert first["score"].item() == VALUES["none"][:, 0].max(), "the value for the probe that took it"


def test_strata_take_in_turn_by_the_mean_over_their_probes() -> None:
    values = VALUES["none"]
    by_stratum = np.column_stack([values[:, 3], values[:, [0, 2]].mean(axis=1), values[:, 1]])
    assert ids(choose("icon_in_turn", 1, turns="strata")) == taken(by_stratum)
    assert ids(choose("icon", 1, turns="strata")) == ids(choose("icon", 1)), "it ranks by the mean"


def test_rankings_are_combined_per_probe_and_unfitting_prompts_come_last() -> None:
    """By default contribution and similarity, among samples with an IFD below 1."""
    places = (shares(VALUES["none"]) + shares(VALUES["cosine"])) / 2
    fits = (POOL["ifd"] < 1).to_numpy()
    expected = [np.where(keep[:, None], places, np.nan) for keep in (fits, ~fits)]
    assert ids(choose("combined", 1)) == [*taken(expected[0]), *taken(expected[1])]
    assert ids(choose("combined", 1, combined={"ifd_below": None})) == taken(places)
    one = {"rankings": ("longest",), "ifd_below": None}
    assert ids(choose("combined", 1, combined=one)) == ids(choose("longest", 1)), "a ranking without probes"
    missing = POOL.with_columns(predicted=pl.when(pl.int_range(20) < 7).then("predicted"))
    assert choose("combined", 0.35, missing, combined={"rankings": ("icon", "icon_selector")}).rows.height == 7
    with pytest.raises(IconError, match="arm combined: needs 8 samples of 20, but 7 have"):
        choose("combined", 0.4, missing, combined={"rankings": ("icon", "icon_selector")})


def test_the_oracle_draws_from_the_strata_of_the_probes_first() -> None:
    strata = dict(zip(POOL["sample_id"], ["news", "code", "code", "code"] * 5, strict=True))
    chosen = ids(choose("oracle", 1))
    assert [strata[each] for each in chosen] == ["news"] * 5 + ["code"] * 15
    assert chosen[:5] != ids(choose("oracle", 1, seed=4))[:5]
    unknown = given_values(VALUES, ["a", "b", "c", "d"], ["news"] * 20)
    with pytest.raises(IconError, match=r"oracle: no sample of the pool has a stratum of the probes \(a, b, c, d\)"):
        select("oracle", Candidates(POOL, of("oracle"), per_probe=unknown))


def test_rankings_that_cannot_be_combined_are_refused_before_anything_runs() -> None:
    check_arms(of("combined"), ("none",))
    check_arms(of("icon", combined={"rankings": ["best"]}), ("none",))
    for name, line in (
        ("best", "'best' is not an arm"),
        ("random", "'random' does not rank by a score"),
        ("rico", "add"),
    ):
        with pytest.raises(IconError, match=rf"selection\.combined\.rankings: .*{line}"):
            check_arms(of("combined", combined={"rankings": ["icon", name]}), ("none",))
    with pytest.raises(IconError, match=r"selection\.combined\.rankings: 'rico' ranks by control"):
        check_arms(of("length_matched", reference="combined", combined={"rankings": ["rico"]}), ("none",))


def test_a_choice_in_turn_is_recorded_only_where_it_matters() -> None:
    """Subsets of earlier versions recorded nothing about turns, and are still valid."""
    assert made_with("icon", of("icon", turns="strata")) == made_with("rds", of("rds")) == {"fraction": 0.15}
    assert made_with("icon", of("icon", aggregate="in_turn", turns="strata")) == {
        "fraction": 0.15,
        "aggregate": "in_turn",
        "turns": "strata",
    }
    assert made_with("rds", of("rds", turns="strata")) == {"fraction": 0.15, "turns": "strata"}
    assert made_with("icon_in_turn", of("icon", turns="strata")) == {"fraction": 0.15, "turns": "strata"}
    assert set(made_with("combined", of("combined"))) == {"fraction", "combined"}
    follows = of("length_matched", reference="combined")
    assert controls_needed("length_matched", follows) == {"none"}
    assert tables_needed("length_matched", follows) == {"sample_features", "probe_features"}


def test_an_arm_owes_all_work_that_it_waited_for() -> None:
    settings = of("random", reference="perplexity")
    owed = {arm: work_owed(arm, settings) for arm in RANKING}
    scored = {
        "icon",
        "rico",
        "icon_peers",
        "icon_selector",
        "icon_stratified",
        "icon_in_turn",
        "combined",
        "lowest",
    }
    assert {arm for arm in RANKING if "pairs" in owed[arm]} == scored
    assert {arm for arm in RANKING if "features" in owed[arm]} == {
        "perplexity",
        "ifd",
        "icon_selector",
        "length_matched",
        "rds",
        "combined",
    }
    assert owed["icon_selector"] == ["pairs", "controls", "features", "selector"]
    assert work_owed("length_matched", of("length_matched", reference="icon")) == ["pairs", "controls"], (
        "its reference's"
    )
    sieved = of("random", diversity=0.9)
    assert {arm: work_owed(arm, sieved) for arm in ("full", "random")} == {"full": [], "random": ["features"]}


@pytest.mark.parametrize("arm", ["random", "length_matched"])
def test_each_training_seed_has_a_draw_of_its_own(arm: str) -> None:
    names = draws(arm, (7, 3, 5))
    assert names == [arm, f"{arm}.1", f"{arm}.2"]
    assert [drawn_for(arm, (7, 3, 5), seed) for seed in (7, 3, 5)] == names
    chosen = [set(ids(choose(name, 0.3))) for name in names]
    assert len({frozenset(each) for each in chosen}) == 3
    assert set(ids(choose(f"{arm}.1", 0.3))) <= set(ids(choose(f"{arm}.1", 0.5))), "nested as the arm itself"
    assert len({choose(name, 0.3).subset_id for name in names}) == 3


def test_one_pool_gives_every_draw_of_every_arm_whatever_was_asked_before() -> None:
    pool = Candidates(POOL, of("random", fraction=0.3, reference="random"))
    asked = ["length_matched.1", "random", "length_matched", "random.1"]
    alone = [select(name, Candidates(POOL, pool.settings)).subset_id for name in asked]
    assert [select(name, pool).subset_id for name in asked] == alone


@pytest.mark.parametrize("arm", ["full", "icon", "longest"])
def test_an_arm_that_nothing_is_drawn_for_has_one_subset_for_all_seeds(arm: str) -> None:
    assert draws(arm, (0, 1)) == [arm]
    assert drawn_for(arm, (0, 1), 1) == arm


def test_training_tokens_are_reported_only_where_they_are_counted() -> None:
    settings = SelectionSettings(fraction=0.25)
    pool = Candidates(POOL, settings)
    subset = select("longest", pool)
    taken = POOL.filter(pl.col("sample_id").is_in(subset.rows["sample_id"].to_list()))[TOKENS].sum()
    assert token_figures(subset, pool) == {
        "training_tokens": taken,
        "pool_training_tokens": POOL[TOKENS].sum(),
        "token_budget": token_budget(pool),
    }
    assert token_figures(subset, Candidates(POOL.drop(TOKENS), settings)) == {}
