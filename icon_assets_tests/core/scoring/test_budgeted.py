"""Budgeted scoring over a store, with pairs from a table; and direct scoring of a share of the pool."""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.digests import digest, share_ceiling
from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.engine import Meter, Pair
from icon_assets.core.model.flops import ModelShape, Work
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.budget import Budget
from icon_assets.core.scoring.budgeted import Budgeted
from icon_assets.core.scoring.contribution import contributions
from icon_assets.core.scoring.scorer import Scorer, pool_size
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, ScoringSettings
from icon_assets_tests.conftest import make_tokenizer, put_shards


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

    def pilot(self, budget: Budget, direct_share: float = 1.0) -> list[str]:
        ceiling = share_ceiling(direct_share)
        return Budgeted(self.store, self.KEY, self.CONTROLS, budget, ceiling, dict).pilot

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
    scores = scorer.scores("s0", world.CONTROLS, budget).filter(~pl.col("sample_id").is_in(world.pilot(budget)))
    effort = scores.group_by("n_probes").len().sort("n_probes")
    assert effort["n_probes"][-1] == world.PROBES, "some are known exactly"
    assert effort.height >= 5, "and each rung leaves some behind"


def test_a_budgeted_pass_that_is_repeated_computes_nothing(world: World) -> None:
    scorer = world.scorer()
    scorer.complete_baseline()
    budget = Budget(share=0.4, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    assert scorer.complete_shard("s0", world.CONTROLS, budget).pairs > 0
    assert scorer.complete_shard("s0", world.CONTROLS, budget).pairs == 0


def test_exact_scoring_after_a_budgeted_one_computes_only_the_rest(world: World) -> None:
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
    assert pl.concat(scored)["sample_id"].sort().to_list() == ids[:few], "pairs of before stay, and count no more"


def test_a_budget_keeps_to_the_draw(world: World) -> None:
    scorer = world.scorer(0.5)
    scorer.complete_baseline()
    budget = Budget(share=0.5, fraction=0.2, control="none", error_rate=0.1, pilot=24, seed=0)
    for shard in ("s0", "s1"):
        scorer.complete_shard(shard, world.CONTROLS, budget)
    scored = world.store.query("SELECT DISTINCT sample_id FROM pair_scores")["sample_id"]
    drawn = [i for i in sorted(world.exact) if _drawn(i, share_ceiling(0.5))]
    assert scored.sort().to_list() == drawn
    pilot = world.pilot(budget, 0.5)
    assert len(pilot) == 24
    assert set(pilot) <= set(drawn), "what the others say of themselves is never computed"
    assert pool_size(world.store, 0.5) == (len(drawn), world.PROBES)
