"""Trust figures, against plain counting, scipy and planted cases."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.inputs.ingest import Located
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.inputs.strata import pool_strata
from icon_assets.core.selection import arm as arm_module
from icon_assets.core.selection.arm import arm, rank
from icon_assets.core.selection.candidates import TOKENS, Candidates
from icon_assets.core.selection.choose import select
from icon_assets.core.selection.per_probe import PerProbe
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.trust import figures as trust
from icon_assets.core.trust import redraws
from icon_assets.core.trust.figures import (
    Choice,
    arm_overlaps,
    auc,
    auc_error,
    length_figures,
    spearman,
    stratum_shares,
    trust_figures,
)
from icon_assets.core.trust.redraws import Figure, control_overlap, halved_draws, nestedness, probe_overlap, redrawn
from icon_assets.core.trust.warnings import summary, warnings
from icon_assets.settings import ControlSettings, SelectionSettings, SelectorSettings, Settings
from icon_assets_tests.conftest import put_embeddings, put_shards
from icon_assets_tests.core.scoring.test_peers import KEY, PROBES, World


def pool_of(n: int, **columns: Any) -> Candidates:
    draw = np.random.default_rng(1)
    frame = {
        "sample_id": [f"{i:04}" for i in range(n)],
        "n_tokens": draw.integers(5, 500, n),
        "none": draw.normal(size=n),
    }
    frame["n_response_chars"] = frame["n_tokens"] * 3
    return Candidates(pl.DataFrame({**frame, **columns}), SelectionSettings())


def chosen_by(name: str, pool: Candidates, **others: set[str]) -> Choice:
    return Choice(name, select(name, pool).rows["sample_id"].to_list(), others)


def value(figures: list[Figure], figure: str, against: str | None = None) -> float:
    (found,) = (f for f in figures if f.figure == figure and against in (None, f.against))
    return found.value


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60))
def test_auc_counts_pairs_and_rank_correlation_is_the_correlation_of_ranks(rows: list[tuple[int, bool]]) -> None:
    values, chosen = (np.array(column) for column in zip(*rows, strict=True))
    if 0 < chosen.sum() < len(rows):
        gaps = values[chosen][:, None] - values[~chosen][None, :]
        assert auc(values, chosen) == pytest.approx(float(((gaps > 0) + (gaps == 0) / 2).mean()), abs=1e-12)
    ranks = [np.array([(each < x).sum() + (each == x).sum() / 2 for x in each]) for each in (values, chosen)]
    if all(np.ptp(each) for each in ranks):
        expected = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
        assert spearman(values, chosen.astype(int)) == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(spearman(values, chosen.astype(int)))


def test_the_error_of_an_auc_is_its_spread_over_draws() -> None:
    draw = np.random.default_rng(0)
    chosen = np.arange(300) < 60
    drawn = [auc(draw.normal(size=300) + chosen, chosen) for _ in range(400)]
    assert auc_error(float(np.mean(drawn)), 60, 240) == pytest.approx(np.std(drawn), rel=0.15)


def test_a_selection_by_length_is_explained_by_length_and_warned_of() -> None:
    pool = pool_of(400)
    figures = length_figures(chosen_by("longest", pool), pool)
    assert value(figures, "length_auc", "tokens") > 0.99
    assert value(figures, "length_spearman") > 0.99
    rows = pl.DataFrame([{**vars(f), "arm": "longest"} for f in figures])
    assert warnings(rows, 0.8)[0] == (
        "longest: chosen samples are longer (tokens): length alone separates them from the rest with AUC 1.00"
    )


def test_a_choice_of_the_shortest_is_one_by_length_too() -> None:
    pool = pool_of(400, none=-pool_of(400).samples["n_tokens"].to_numpy().astype(float))
    figures = length_figures(chosen_by("icon", pool), pool)
    assert value(figures, "length_auc", "tokens") < 0.01
    assert value(figures, "length_spearman") < -0.99
    assert "chosen samples are shorter" in warnings(pl.DataFrame([{**vars(f), "arm": "icon"} for f in figures]), 0.8)[0]


def test_a_random_choice_has_no_length_and_its_interval_says_so() -> None:
    pool = pool_of(2000)
    for name in ("random", "icon"):
        figures = length_figures(chosen_by(name, pool), pool)
        assert warnings(pl.DataFrame([{**vars(f), "arm": name} for f in figures]), 0.8) == []
        for figure in figures:
            nothing = 0.5 if figure.figure == "length_auc" else 0.0
            assert figure.low is not None
            assert figure.high is not None
            assert figure.low < nothing < figure.high
            assert figure.low < figure.value < figure.high


def test_of_a_handful_of_samples_length_tells_nothing() -> None:
    pool = pool_of(20)
    assert [f.figure for f in length_figures(chosen_by("longest", pool), pool)] == ["length_spearman"]


def test_one_ranking_for_every_size_is_nested_and_one_per_size_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(300)
    assert [(f.against, f.value) for f in nestedness("icon", pool)] == [
        ("1% in 5%", 1.0),
        ("5% in 15%", 1.0),
        ("15% in 30%", 1.0),
    ]
    monkeypatch.setattr(arm_module, "_ARMS", dict(arm_module._ARMS))

    @arm("capricious", "another ranking for every size")
    def _capricious(pool: Candidates) -> pl.DataFrame:
        seed = int(1000 * pool.settings.fraction)
        return pool.samples.select("sample_id", score=pl.lit(0.0)).sample(fraction=1, shuffle=True, seed=seed)

    found = nestedness("capricious", pool)
    assert max(f.value for f in found) < 0.6
    rows = pl.DataFrame([{**vars(f), "arm": "capricious"} for f in found])
    assert "is chosen at the next larger one (15% in 30%)" in warnings(rows, 0.8)[-1]


def test_nestedness_stops_where_the_arm_can_rank_no_more() -> None:
    few = np.where(np.arange(100) < 10, 1.0, np.nan)
    pool = pool_of(100, none=pl.Series(few).fill_nan(None))
    assert [f.against for f in nestedness("icon", pool)] == ["1% in 5%"]
    assert nestedness("full", pool) == []


def tops(pool: Candidates) -> Callable[[np.ndarray], set[str]]:
    order = np.array(pool.samples["sample_id"])
    return lambda scores: set(order[np.argsort(-scores, kind="stable")[: math.ceil(0.15 * len(order))]])


def only(figures: list[Figure]) -> Figure:
    (figure,) = figures
    return figure


@pytest.mark.parametrize("reliability", [0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_overlap_is_what_an_independent_set_of_as_many_probes_keeps(reliability: float, heavy: bool) -> None:
    """Measured on one set alone, against other sets of the same kind: with nothing but noise, what chance keeps."""
    pool = pool_of(400)
    draw = np.random.default_rng(3)
    n_probes = 32
    top = tops(pool)
    said = list[float]()
    kept = list[float]()
    for _ in range(4):
        worth = draw.normal(0, math.sqrt(reliability / (1 - reliability) / n_probes), (400, 1))
        own, *others = (
            worth
            + (draw.standard_t(4, (400, n_probes)) / math.sqrt(2) if heavy else draw.normal(size=(400, n_probes)))
            + draw.normal(0, 2, n_probes)
            for _ in range(9)
        )
        chosen = top(own.mean(axis=1))
        said.append(only(probe_overlap(top, own, 0)).value)
        kept += [len(chosen & top(other.mean(axis=1))) / 60 for other in others]
    assert np.mean(said) == pytest.approx(np.mean(kept), abs=0.06)
    if not reliability:
        assert np.mean(kept) == pytest.approx(0.15, abs=0.03)


def test_probes_that_agree_keep_a_selection_and_probes_that_do_not_are_warned_of() -> None:
    pool = pool_of(400)
    draw = np.random.default_rng(3)
    worth = draw.normal(size=(400, 1))
    agree = only(probe_overlap(tops(pool), worth + draw.normal(0, 0.3, (400, 64)), 0))
    noise = only(probe_overlap(tops(pool), draw.normal(size=(400, 64)), 0))
    same = only(probe_overlap(tops(pool), np.repeat(worth, 64, axis=1), 0))
    assert agree.value > 0.9
    assert (same.value, same.low, same.high) == (1, 1, 1)
    for figure in (agree, noise):
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
    assert noise.detail == "0.15 would stay by chance alone; 200 draws of 64 probes, 400 samples"
    rows = pl.DataFrame([{**vars(f), "arm": "icon"} for f in (agree, noise)])
    assert warnings(rows, 0.8) == [
        f"icon: with another set of as many probes {1 - noise.value:.0%} of its samples would change "
        "(0.15 would stay by chance alone); raise probes.count"
    ]
    assert probe_overlap(tops(pool), worth, 0) == [], "one probe alone says nothing about another"


def test_a_redrawn_choice_follows_the_token_budget_and_passes_over_what_the_selection_passes_over(
    tmp_path: Path,
) -> None:
    samples = pool_of(40).samples.with_columns(pl.col("n_tokens").alias(TOKENS))
    ids = samples["sample_id"].to_list()
    embeddings = put_embeddings(Store(tmp_path), {each: np.eye(8)[i % 8] for i, each in enumerate(ids)})
    for settings in (SelectionSettings(budget="tokens"), SelectionSettings(diversity=0.9)):
        pool = Candidates(samples, settings, embeddings)
        top = redraws._topper("icon", "none", ids, pool)
        assert top(samples["none"].to_numpy()) == set(select("icon", pool).rows["sample_id"])
        assert top(-samples["none"].to_numpy()) == set(select("lowest", pool).rows["sample_id"])
    narrow = Candidates(samples, SelectionSettings(diversity=0.9, fraction=0.5), embeddings)
    assert redraws._topper("icon", "none", ids, narrow)(samples["none"].to_numpy()) is None, "8 of them differ"


@pytest.mark.parametrize(
    ("draws", "parts"),
    [
        (2, [(5, 1), (6, 1)]),
        (3, [(5, 1), (6, 1), (7, 1)]),
        (4, [(5, 2), (7, 2)]),
        (5, [(5, 2), (7, 2)]),
        (64, [(5, 32), (37, 32)]),
    ],
)
def test_draws_of_random_contexts_are_held_against_draws_that_share_no_seed(
    draws: int, parts: list[tuple[int, int]]
) -> None:
    controls = ControlSettings(seed=5, draws=draws)
    assert [(part.seed, part.draws) for part in halved_draws(controls)] == parts
    pool = pool_of(400)
    draw = np.random.default_rng(3)
    figure = only(control_overlap(tops(pool), draw.normal(size=(400, len(parts))), "random_tokens", draws))
    assert figure.value == pytest.approx(0.15, abs=0.1)
    assert (figure.low is None) == (figure.high is None) == (len(parts) == 2), "one comparison has no interval"
    each = "single draws" if draws < 4 else f"{draws // 2} draws together"
    assert figure.detail == f"0.15 would stay by chance alone; {each} against others, where the arm averages {draws}"
    (said,) = warnings(pl.DataFrame([{**vars(figure), "arm": "rico"}]), 0.8)
    assert said.endswith(f"of its samples would change ({figure.detail}); raise controls.draws")


def test_one_half_of_the_probes_is_held_against_the_other_where_they_are_asked_in_turn(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    vectors = {f"{i:04}": draw.normal(size=8) for i in range(200)}
    alike = {f"p{i}": np.arange(8.0) for i in range(4)}
    unlike = {f"p{i}": draw.normal(size=8) for i in range(16)}
    found = []
    for name, probes in (("alike", alike), ("unlike", unlike), ("one", {"p": draw.normal(size=8)})):
        embeddings = put_embeddings(Store(tmp_path / name), vectors, probes)
        values = PerProbe(embeddings.store, KEY, ControlSettings(), 0)
        cosines = embeddings.cosines(values.sample_ids)
        values = replace(values, _known={"cosine": cosines})
        pool = Candidates(pool_of(200).samples, SelectionSettings(), embeddings, values)
        found.append(redraws._halved("rds", pool, cosines, 0))
    assert (only(found[0]).value, only(found[0]).against) == (1, "the other half of the probes")
    assert only(found[1]).value < 0.5
    assert "50 times 8 probes against 8 others, 200 samples" in only(found[1]).detail
    assert found[2] == []


def test_shares_of_strata_stand_beside_what_chance_gives() -> None:
    strata = pl.DataFrame({"sample_id": [f"{i:03}" for i in range(200)], "stratum": ["math"] * 40 + ["prose"] * 160})
    figures = {f.against: f for f in stratum_shares(strata, [f"{i:03}" for i in range(30)])}
    assert [*figures] == ["prose", "math"]
    assert (figures["math"].value, figures["prose"].value) == (1, 0)
    assert figures["math"].detail == "0.200 of the pool"
    low = figures["math"].low
    high = figures["math"].high
    assert (low, high) == pytest.approx(
        [0.2 + side * 1.96 * math.sqrt(0.2 * 0.8 / 30 * 170 / 199) for side in (-1, 1)], abs=1e-3
    )
    said = warnings(pl.DataFrame([{**vars(f), "arm": "icon"} for f in figures.values()]), 0.8)
    assert said == [
        "icon: 0% of its samples are prose; their share of the pool is 0.800",
        "icon: 100% of its samples are math; their share of the pool is 0.200",
    ]
    even = stratum_shares(strata, [f"{i:03}" for i in range(0, 200, 5)])
    assert warnings(pl.DataFrame([{**vars(f), "arm": "icon"} for f in even]), 0.8) == []


def test_of_many_strata_the_small_ones_are_counted_together() -> None:
    strata = pl.DataFrame(
        {"sample_id": [str(i) for i in range(300)], "stratum": [f"{max(i, 50) // 5}" for i in range(300)]}
    )
    figures = stratum_shares(strata, [str(i) for i in range(60)])
    assert len(figures) == trust._SHOWN_STRATA + 1
    assert sum(f.value for f in figures) == pytest.approx(1)
    assert "(others)" in {f.against for f in figures}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('{"category": "a", "stratum": "x"}', {"x"}),
        ('{"category": "a"}', {"a"}),
        ('{"source": "http"}', {"http"}),
        ('{"dataset": "x", "category": "a"}', {"x"}),
        ('{"task": "x", "source": "http"}', {"x"}),
        (None, {"f.jsonl"}),
        ('{"stratum": null}', {"f.jsonl"}),
        ('{"other": 1}', {"f.jsonl"}),
    ],
)
def test_the_stratum_is_the_same_field_of_a_sample_as_of_a_probe_or_its_file(
    tmp_path: Path, fields: str | None, expected: set[str]
) -> None:
    store = Store(tmp_path)
    put_shards(store, "a")
    text = {
        "shard": "a",
        "file": "f.jsonl",
        "instruction": "i",
        "input": "",
        "response": "r",
        "turns": None,
        "n_chars": 1,
    }
    rows = [{**text, "row": i, "sample_id": str(i), "metadata": fields} for i in range(6)]
    rows[5] |= {"metadata": None, "file": "f.jsonl"}
    rows[4] |= {"metadata": fields and fields.replace('"x"', '"y"').replace('"a"', '"b"').replace("http", "ftp")}
    store.append("samples", pl.DataFrame(rows, schema_overrides={"turns": pl.String, "metadata": pl.String}))
    assert expected <= set(pool_strata(store)["stratum"])
    assert pool_strata(store).height == 6
    probe = Located(1, Sample("i", "", "r"), fields)
    assert {probe.stratum("f.jsonl")} == expected


def test_overlap_with_other_arms_stands_beside_chance() -> None:
    figures = arm_overlaps(Choice("icon", ["a", "b", "c", "d"], {"random": {"a", "x"}, "longest": {*"abcdz"}}), 20)
    assert [(f.against, f.value, f.detail) for f in figures] == [
        ("longest", 1.0, "by chance 0.250"),
        ("random", 0.25, "by chance 0.100"),
    ]
    rows = pl.DataFrame([{**vars(f), "arm": "icon"} for f in figures])
    assert warnings(rows, 0.8) == ["icon: 100% of its samples are also in longest: a comparison of the two says little"]


def test_all_figures_of_a_stored_selection(tmp_path: Path) -> None:
    """A pool whose scores follow length, of which every text is the same, with two draws of a control that disagree."""
    world = World(tmp_path, 200)
    controls = [
        {
            "score_key": KEY.value,
            "probe_id": p,
            "control": "random_tokens",
            "seed": seed,
            "length": n,
            "n_context_tokens": n,
            "nll_sum": world.base[j] + seed * n / 400,
            "n_tokens": 1,
            "truncated": False,
        }
        for j, p in enumerate(PROBES)
        for seed in (0, 1)
        for n in (8, 2040)
    ]
    world.store.append("control_scores", pl.DataFrame(controls))
    x = (np.exp(world.base) - np.exp(world.nll)).mean(axis=1)
    columns = {
        "sample_id": world.ids,
        "n_tokens": world.lengths,
        "n_response_chars": world.lengths,
        "none": x,
        "random_tokens": x,
    }
    settings = Settings(controls={"lengths": (8, 2040)})  # pyright: ignore[reportArgumentType]
    pool = Candidates(pl.DataFrame(columns), settings.selection, Embeddings(world.store, KEY.value))
    chosen = chosen_by("rico", pool, random=set(world.ids[:30]))
    figures = trust_figures(world.store, KEY, settings, pool, chosen)
    assert set(figures["figure"]) == {
        "length_auc",
        "length_spearman",
        "nestedness",
        "probe_overlap",
        "control_overlap",
        "stratum_share",
        "near_duplicates",
        "arm_overlap",
    }
    found = {(row["figure"], row["against"]): row["value"] for row in figures.iter_rows(named=True)}
    assert found["near_duplicates", "words"] == 29 / 30, "all but the first repeat it"
    assert found["stratum_share", "f"] == 1
    assert found["length_spearman", "tokens"] > 0.5
    assert found["probe_overlap", "another set of as many probes"] > 0.8
    assert found["control_overlap", "random_tokens"] < 0.9
    assert figures.filter(pl.col("figure") == "control_overlap")["low"].item() is None
    of_peers = trust_figures(
        world.store,
        KEY,
        settings,
        Candidates(pool.samples.with_columns(peers=pl.col("none")), pool.settings),
        Choice("icon_peers", chosen.sample_ids, {}),
    )
    assert "control_overlap" not in set(of_peers["figure"]), "peers are not drawn"
    assert of_peers.filter(pl.col("figure") == "probe_overlap")["value"].item() > 0.5
    predicted = Candidates(pool.samples.with_columns(predicted=pl.col("none")), pool.settings)
    lora = settings.model_copy(update={"selector": SelectorSettings(kind="lora")})
    for name in ("random", "length_matched", "icon_selector"):
        rows = trust_figures(world.store, KEY, lora, predicted, Choice(name, chosen.sample_ids, {}))
        assert not {"probe_overlap", "control_overlap"} & set(rows["figure"]), f"{name} has nothing to draw again"

    world.store.replace("trust_figures", figures.with_columns(subset_id=pl.lit("old")), arm="rico")
    ledger.record(world.store, Recipe("selected_subset", "rico"), "new", "run", {})
    assert world.store.query("FROM trust_figures").is_empty(), "of a subset that was replaced"
    world.store.replace("trust_figures", figures.with_columns(subset_id=pl.lit("new")), arm="rico")
    assert world.store.query("FROM trust_figures").height == figures.height
    (row,) = summary(world.store.query("FROM trust_figures")).iter_rows(named=True)
    assert (row["arm"], row["near-duplicates"], row["nested"]) == ("rico", 29 / 30, 1)


def test_a_light_selector_is_trained_anew_for_other_probes(tmp_path: Path) -> None:
    """What it can learn from the embeddings is the worth that all probes agree on: more stable than the
    contributions."""
    world = World(tmp_path, 200)
    draw = np.random.default_rng(2)
    signal = np.column_stack([world.worth + draw.normal(0, 0.01, 200), draw.normal(0, 0.1, (200, 7))]).astype("f4")
    world.store.append(
        "sample_features",
        pl.DataFrame(
            {
                "score_key": KEY.value,
                "origin": "a",
                "sample_id": world.ids,
                "n_tokens": world.lengths,
                "nll_sum": 2.0,
                "nll_alone": 3.0,
                "truncated": False,
                "embedding": signal.tolist(),
            },
            schema_overrides={"embedding": pl.List(pl.Float32)},
        ),
    )
    columns = {
        "sample_id": world.ids,
        "n_tokens": world.lengths,
        "n_response_chars": world.lengths,
        "predicted": world.worth,
    }
    pool = Candidates(pl.DataFrame(columns), SelectionSettings())
    figure = only(redrawn(world.store, KEY, Settings(), "icon_selector", pool))
    assert figure.value > 0.8
    assert figure.detail.endswith("200 draws of 6 probes, 200 samples")
    world.store.replace(
        "sample_features",
        world.store.query("FROM delta.sample_features").with_columns(
            pl.Series("embedding", draw.normal(size=(200, 8)).astype("f4").tolist(), pl.List(pl.Float32)),
            n_tokens=7,
        ),
    )
    (noise,) = redrawn(world.store, KEY, Settings(), "icon_selector", pool) or [None]
    assert noise is None or noise.value < figure.value


def test_near_duplicates_are_counted_by_embeddings_where_there_are_any(tmp_path: Path) -> None:
    vectors = {f"{i:04}": np.eye(8)[i % 8] for i in range(40)}
    embeddings = put_embeddings(Store(tmp_path), vectors)
    pool = Candidates(pool_of(40).samples, SelectionSettings(), embeddings)
    figures = trust._repeats(embeddings.store, Settings(), Choice("random", list(vectors), {}), pool)
    assert value(figures, "near_duplicates", "embeddings") == pytest.approx(32 / 40)
    assert rank("random", pool).height == 40
