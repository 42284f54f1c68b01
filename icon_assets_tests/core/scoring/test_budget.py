"""Budgeted scoring: rungs, the cut, who goes on; and the whole elimination over a store, with pairs from a table."""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.digests import digest, share_ceiling
from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.engine import Meter, Pair
from icon_assets.core.model.flops import ModelShape, Work
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.budget import Budget, affordable, budget_of, cut, pilot_size, rungs, undecided
from icon_assets.core.scoring.contribution import contributions
from icon_assets.core.scoring.probe_model import Calibration, ProbeModel
from icon_assets.core.scoring.scorer import Scorer, pool_size
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, ScoringSettings, Settings
from icon_assets_tests.conftest import make_tokenizer, put_shards


@given(st.integers(1, 2000), st.floats(0.01, 0.99))
def test_rungs_grow_to_all_probes_and_start_within_the_budget(n_probes: int, share: float) -> None:
    sizes = rungs(n_probes, share)
    assert sizes[-1] == n_probes
    assert sizes == sorted(set(sizes))
    assert sizes[0] <= 8 or sizes[0] <= share * n_probes / 2 + 1


def test_the_cut_lies_between_the_last_that_is_wanted_and_the_next() -> None:
    scores = pl.Series([4.0, 1.0, 3.0, 2.0])
    ones = pl.Series([1.0] * 4)
    assert cut(scores, ones, 0.5) == 2.5
    assert cut(scores, ones, 1.0) == 1.0
    assert cut(pl.Series([7.0]), pl.Series([1.0]), 0.15) == 7.0


def test_a_score_that_stands_for_several_samples_moves_the_cut() -> None:
    assert cut(pl.Series([4.0, 3.0, 2.0, 1.0]), pl.Series([1.0, 1.0, 1.0, 5.0]), 0.5) == 1.0
    assert cut(pl.Series([9.0, 4.0, 3.0, 2.0]), pl.Series([5.0, 1.0, 1.0, 1.0]), 0.5) == 6.5
    assert cut(pl.Series([9.0, 4.0, 3.0]), pl.Series([0.0, 1.0, 1.0]), 0.5) == 3.5


def test_only_samples_whose_interval_holds_the_cut_go_on_nearest_first() -> None:
    estimates = pl.DataFrame(
        {
            "sample_id": ["clear above", "near", "complete", "nearest", "clear below"],
            "contribution": [2.0, 1.3, 1.0, 0.9, 0.0],
            "standard_error": [0.2, 0.2, 0.0, 0.2, 0.2],
        }
    )
    assert undecided(estimates, 1.0, 2.0) == ["nearest", "near"]


def test_the_allowance_is_never_exceeded() -> None:
    assert affordable(["a", "b", "c"], [4, 4, 4], 8) == ["a", "b"]
    assert affordable(["a", "b", "c"], [4, 4, 4], 3) == []
    assert affordable([], [], 3) == []


def test_the_pilot_grows_with_the_pool_in_steps() -> None:
    assert [pilot_size(n) for n in (10, 2399, 2400, 10_000, 10_000_000)] == [24, 24, 48, 192, 384]


def test_a_small_pool_is_scored_exactly_and_a_large_one_by_a_third() -> None:
    settings = Settings()
    assert budget_of(settings, 1000, 48) is None
    large = budget_of(settings, 1_000_000, 48)
    assert large is not None
    assert large.share == pytest.approx(1 / 3)
    exact = settings.model_copy(update={"probes": settings.probes.model_copy(update={"budget": "exact"})})
    assert budget_of(exact, 1_000_000, 48) is None


class World:
    """A store with made-up samples and probes, and an engine that looks the pairs up instead of computing them."""

    SAMPLES = 120
    PROBES = 64
    KEY = ScoreKey("model", "float32", "alpaca", "\n", 64, 64, 64)
    CONTROLS = ControlSettings(kinds=("none",))

    def __init__(self, root: Path) -> None:
        draw = random.Random(1)
        self.store = Store(root)
        self.value = [draw.gauss(0.1, 0.05) for _ in range(self.SAMPLES)]
        level = [draw.uniform(-0.3, 0.3) for _ in range(self.PROBES)]
        noise = [draw.choice([0.02, 0.04, 0.15]) for _ in range(self.PROBES)]  # as with real probes, some are erratic
        self.influence = [
            [min(0.9, v + p + draw.gauss(0, sd)) for p, sd in zip(level, noise, strict=True)] for v in self.value
        ]
        self.scored: list[tuple[int, int]] = []
        text = {"file": "f", "input": "", "response": "r", "turns": None, "metadata": None}
        samples = [
            {
                "shard": f"s{i % 2}",
                "row": i,
                "sample_id": f"{draw.getrandbits(64):016x}",
                "instruction": str(i),
                "n_chars": 1,
            }
            | text
            for i in range(self.SAMPLES)
        ]
        for shard, rows in pl.DataFrame(samples, schema_overrides={"turns": pl.String, "metadata": pl.String}).group_by(
            "shard"
        ):
            self.store.replace("samples", rows, shard=str(shard[0]))
        probes = [
            {
                "probe_id": f"p{i:03}",
                "stratum": "x",
                "status": "selected",
                "detail": "",
                "instruction": str(i),
                "row": 1,
            }
            | text
            for i in range(self.PROBES)
        ]
        self.store.replace("probe_candidates", pl.DataFrame(probes, schema_overrides={"turns": pl.String}))
        put_shards(self.store, "s0", "s1")
        self.exact = {s["sample_id"]: sum(self.influence[i]) / self.PROBES for i, s in enumerate(samples)}

    def scorer(self, direct_share: float = 1.0) -> Scorer:
        world = self

        class LookUp:
            description = "packed"

            def __init__(self) -> None:
                self.meter = Meter()
                self.language_model = SimpleNamespace(tokenizer=world.tokenizer, device=SimpleNamespace(type="cpu"))

            def compile_for(self, tokens: int) -> bool:
                return False

            def score(
                self, contexts: Sequence[Sequence[int]], probes: Sequence[Encoded], wanted: Sequence[Sequence[int]]
            ) -> Iterator[list[Pair]]:
                numbers = [world.number(ids) for ids in contexts]
                for context, indices in enumerate(wanted):
                    world.scored += [(numbers[context], p) for p in indices]
                    self.meter.pairs += len(indices)
                    self.meter.work += Work(len(indices), 0, 0)
                    yield [
                        # Without context the perplexity is e, so that influence = 1 - PPL / e, apart from the 1e-6.
                        Pair(
                            context,
                            p,
                            1.0
                            if not contexts[context]
                            else math.log(math.e - world.influence[numbers[context]][p] * (math.e + 1e-6)),
                            1,
                        )
                        for p in indices
                    ]

        self.tokenizer = make_tokenizer(bos=False)
        engine: Any = LookUp
        return Scorer(
            self.store, self.KEY, engine, lambda: ModelShape(1, 1, 1, 1, 1), ScoringSettings(direct_share=direct_share)
        )

    def number(self, ids: Sequence[int]) -> int:
        """The sample's number stands in its text, as its instruction."""
        text: Any = self.tokenizer.decode(list(ids))
        return int(text.split("\n")[1]) if ids else -1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


def top(scores: dict[str, float], fraction: float) -> set[str]:
    return set(sorted(scores, key=lambda s: -scores[s])[: math.ceil(fraction * len(scores))])


def test_elimination_finds_the_top_within_its_budget(world: World) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    world.scored.clear()
    budget = Budget(share=0.5, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    found: dict[str, float] = {}
    for shard in ("s0", "s1"):
        scorer.complete_shard(shard, world.CONTROLS, budget)
        scores = scorer.scores(shard, world.CONTROLS, budget)
        world.store.replace("sample_scores", scores, shard=shard, score_key=world.KEY.value)
        found |= dict(scores.select("sample_id", "contribution").iter_rows())
        for row in scores.iter_rows(named=True):
            assert (row["standard_error"] == 0) == (row["n_probes"] == world.PROBES)
            if row["n_probes"] == world.PROBES:
                assert row["contribution"] == pytest.approx(world.exact[row["sample_id"]], abs=1e-6)
    assert len(world.scored) == len(set(world.scored)), "no pair twice"
    pilot_pairs = 24 * world.PROBES
    assert len(world.scored) <= 0.5 * world.SAMPLES * world.PROBES + pilot_pairs
    assert len(found) == world.SAMPLES, "every sample keeps an estimate"
    wanted = top(world.exact, 0.2)
    assert len(top(found, 0.2) & wanted) >= 0.9 * len(wanted)
    effort: dict[int, int] = {}
    for number, _ in world.scored:
        effort[number] = effort.get(number, 0) + 1
    assert len(set(effort.values())) >= 3, "effort follows the distance from the cut"


def test_standard_errors_cover_the_exact_score(world: World) -> None:
    """The share of samples whose exact score lies within 2 standard errors of the estimate is about 95 %."""
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.26, fraction=0.2, control="none", error_rate=0.999, pilot=24, seed=0)
    scorer.complete_shard("s0", world.CONTROLS, budget)
    scores = scorer.scores("s0", world.CONTROLS, budget)
    partial = scores.filter(pl.col("standard_error") > 0)
    assert partial.height > 30
    inside = [
        abs(row["contribution"] - world.exact[row["sample_id"]]) < 2 * row["standard_error"] + 1e-6
        for row in partial.iter_rows(named=True)
    ]
    assert sum(inside) / len(inside) >= 0.85


def test_where_nothing_is_decided_early_the_budget_still_lasts_to_the_last_rung(world: World) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.45, fraction=0.2, control="none", error_rate=1e-9, pilot=24, seed=0)
    scorer.complete_shard("s0", world.CONTROLS, budget)
    scores = scorer.scores("s0", world.CONTROLS, budget).filter(~pl.col("sample_id").is_in(scorer.pilot(budget)))
    effort = scores.group_by("n_probes").len().sort("n_probes")
    assert effort["n_probes"][-1] == world.PROBES, "some are known exactly"
    assert effort.height >= 5, "and each rung leaves some behind"


def many_tempers(n: int, probes: int, seed: int) -> np.ndarray:
    """Influences [n, probes] with many common causes, of samples of which some vary several times as much as others."""
    draw = np.random.default_rng(seed)
    causes = np.random.default_rng(0).normal(0, 0.1, (60, probes))
    return np.exp(draw.normal(0, 0.8, (n, 1))) * (draw.normal(size=(n, 60)) @ causes)


def test_intervals_hold_for_samples_that_nothing_was_learned_from() -> None:
    inside = []
    promised = []
    costs = np.ones(96)
    for seed in range(12):
        pilot = many_tempers(24, 96, seed)
        others = many_tempers(400, 96, 100 + seed)
        model = ProbeModel.fit(pilot, pilot)
        calibration = Calibration(pilot, costs)
        seen = np.zeros(96, bool)
        seen[model.order(costs)[:48]] = True
        value, error = model.estimate(seen, others[:, seen])
        z = np.abs(value - others.mean(axis=1)) / error
        promised.append((z < 1.645).mean())
        inside.append((z < 1.645 * calibration.inflation(48)).mean())
        assert calibration.inflation(96) == 1, "nothing is estimated"
    assert np.mean(promised) < 0.82, "the normal model alone promises too much here"
    assert 0.87 < np.mean(inside) < 0.95


def test_probes_come_in_the_order_of_what_they_tell_for_their_price() -> None:
    x = many_tempers(60, 12, 1)
    costs = np.random.default_rng(4).uniform(1, 5, 12)
    model = ProbeModel.fit(x, x)
    rest = model.covariance.copy()
    left = list(range(12))
    order = []
    for _ in range(12):  # the same, with the whole of what is left of the covariance
        best = max(left, key=lambda i: rest[i, left].sum() ** 2 / rest[i, i] / costs[i])
        order.append(best)
        left.remove(best)
        rest -= np.outer(rest[:, best], rest[:, best]) / rest[best, best]
    assert model.order(costs) == order


def test_a_budgeted_pass_that_is_repeated_computes_nothing(world: World) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.4, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    assert scorer.complete_shard("s0", world.CONTROLS, budget).pairs > 0
    assert scorer.complete_shard("s0", world.CONTROLS, budget).pairs == 0


def test_exact_scoring_after_a_budgeted_one_computes_only_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.4, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    scorer.complete_shard("s0", world.CONTROLS, budget)
    scorer.complete_shard("s1", world.CONTROLS)
    scorer.complete_shard("s0", world.CONTROLS)
    pairs = [pair for pair in world.scored if pair[0] >= 0]
    assert len(pairs) == len(set(pairs)) == world.SAMPLES * world.PROBES


def test_a_budgeted_pass_that_lost_pairs_computes_those_again(world: World) -> None:
    """As after a kill in the middle of a rung: samples then have numbers of probes that are no rung."""
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.4, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    scorer.complete_shard("s0", world.CONTROLS, budget)
    whole = world.store.query("FROM delta.pair_scores")
    kept = whole.filter(~((pl.col("sample_id").hash(3) % 4 == 0) & (pl.col("probe_id").hash(5) % 3 == 0)))
    assert kept.height < whole.height
    world.store.replace("pair_scores", kept)
    again = scorer.complete_shard("s0", world.CONTROLS, budget)
    pairs = world.store.query("SELECT count(*) AS n, count(DISTINCT (sample_id, probe_id)) AS u FROM pair_scores").row(
        0
    )
    assert pairs[0] == pairs[1]
    assert again.pairs > 0
    assert 0.95 * whole.height <= pairs[0] <= 1.05 * whole.height, "as much effort as if nothing had happened"
    least = world.store.query("SELECT min(n) FROM (SELECT count(*) AS n FROM pair_scores GROUP BY sample_id)").item()
    assert least >= 8, "every sample has its first rung again"


def test_an_empty_shard_needs_nothing(world: World) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.4, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    assert scorer.complete_shard("no such shard", world.CONTROLS, budget).pairs == 24 * world.PROBES, "the pilot only"


# Direct scoring of a share


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers())
def test_a_larger_share_holds_a_smaller_one(a: float, b: float, number: int) -> None:
    smaller, larger = (share_ceiling(share) for share in sorted((a, b)))
    assert not _drawn(digest(number), smaller) or _drawn(digest(number), larger)
    assert _drawn(digest(number), share_ceiling(1.0))


@given(st.floats(0.02, 0.98))
def test_the_draw_takes_its_share_of_any_pool(share: float) -> None:
    drawn = [_drawn(sample_id, share_ceiling(share)) for sample_id in IDS]
    assert abs(sum(drawn) / len(drawn) - share) < 0.04


IDS = [digest(number) for number in range(4000)]


def _drawn(sample_id: str, ceiling: str | None) -> bool:
    return ceiling is None or sample_id < ceiling


def test_only_drawn_samples_are_scored_and_a_larger_share_scores_only_the_newly_drawn(world: World) -> None:
    ids = sorted(world.exact)
    few, more = (sum(_drawn(i, share_ceiling(share)) for i in ids) for share in (0.3, 0.6))
    assert 0 < few < more < world.SAMPLES
    for share, due in ((0.3, few), (0.6, more - few), (0.3, 0), (1.0, world.SAMPLES - more)):
        scorer = world.scorer(share)
        scorer.complete_baseline()
        world.scored.clear()
        for shard in ("s0", "s1"):
            scorer.complete_shard(shard, world.CONTROLS)
        assert len(world.scored) == due * world.PROBES, share
    scored = [contributions(world.store, world.KEY, s, world.CONTROLS, None, share_ceiling(0.3)) for s in ("s0", "s1")]
    assert pl.concat(scored)["sample_id"].sort().to_list() == ids[:few], "previous pairs stay, but no longer count"


def test_a_budget_keeps_to_the_draw(world: World) -> None:
    scorer = world.scorer(0.5)
    scorer.complete_baseline()
    budget = Budget(share=0.5, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    for shard in ("s0", "s1"):
        scorer.complete_shard(shard, world.CONTROLS, budget)
    scored = world.store.query("SELECT DISTINCT sample_id FROM pair_scores")["sample_id"]
    drawn = [i for i in sorted(world.exact) if _drawn(i, share_ceiling(0.5))]
    assert scored.sort().to_list() == drawn
    assert len(scorer.pilot(budget)) == 24
    assert set(scorer.pilot(budget)) <= set(drawn), "what the others say of themselves is never computed"
    assert pool_size(world.store, 0.5) == (len(drawn), world.PROBES)
