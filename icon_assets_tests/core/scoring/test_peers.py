"""The control `peers`: its curves, its contributions against the plain formulas, and what it does to a trend with
length."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring import peers
from icon_assets.core.scoring.peers import draw, peer_contributions, peer_influences, typical
from icon_assets.core.scoring.probe_model import ProbeModel
from icon_assets.core.store.tables import Store
from icon_assets_tests.conftest import put_shards

KEY = ScoreKey("model", "float32", "alpaca", "\n", 2040, 64, 64)
PROBES = [f"p{i}" for i in range(6)]
TEXT = {"file": "f", "instruction": "i", "input": "", "response": "r", "turns": None, "metadata": None, "row": 1}
STRINGS = {"turns": pl.String, "metadata": pl.String}


class World:
    """A pool whose pairs follow a law: NLL falls with log length, and with each sample's own worth."""

    def __init__(self, root: Path, n: int, seen: int = len(PROBES)) -> None:
        draw = np.random.default_rng(1)
        self.store = Store(root)
        self.ids = [f"{i:04}" for i in range(n)]
        self.lengths = np.exp(draw.normal(4.5, 0.8, n)).astype(int) + 5
        self.worth = draw.normal(0, 0.1, n)
        self.base = draw.uniform(1.5, 3, len(PROBES))
        slope = draw.uniform(0.05, 0.2, len(PROBES))
        noise = draw.normal(0, 0.02, (n, len(PROBES)))
        self.nll = self.base - slope * np.log(self.lengths)[:, None] - self.worth[:, None] + noise
        self.put(seen)

    def put(self, seen: int) -> None:
        """All samples with the first `seen` probes; those that are drawn first, with all of them."""
        store = self.store
        n = len(self.ids)
        put_shards(store, "a")
        rivers = "The Rhine, the Danube and the Loire are three rivers of Europe, and this is sample"
        samples = [
            {"shard": "a", "sample_id": each, "n_chars": 1, **TEXT, "response": f"{rivers} {each}"} for each in self.ids
        ]
        store.append("samples", pl.DataFrame(samples, schema_overrides=STRINGS))
        probes = [{"probe_id": p, "stratum": "x", "status": "selected", "detail": "", **TEXT} for p in PROBES]
        store.append("probe_candidates", pl.DataFrame(probes, schema_overrides=STRINGS))
        store.append(
            "contexts",
            pl.DataFrame(
                {
                    "score_key": [KEY.value] * n,
                    "sample_id": self.ids,
                    "origin": ["a"] * n,
                    "n_context_tokens": self.lengths,
                    "n_context_chars": self.lengths * 4,
                    "truncated": [False] * n,
                }
            ),
        )
        figures = dict.fromkeys(
            ("contribution", "consistency", "stability", "coverage", "significance", "standard_error"), 0.0
        )
        scored = {
            "shard": "a",
            "score_key": KEY.value,
            "control": "none",
            "n_probes": seen,
            "truncated": False,
            **figures,
        }
        store.append(
            "sample_scores",
            pl.DataFrame({"sample_id": self.ids, "n_context_tokens": self.lengths}).with_columns(
                **{name: pl.lit(value) for name, value in scored.items()}
            ),
        )
        turns = self.store.query("SELECT unnest($ids) AS id ORDER BY md5('0' || id)", {"ids": self.ids})["id"].to_list()
        self.pilot = turns[: n // 4]
        rows = [
            (KEY.value, "a", each, p, self.nll[i, j] * 5, 5)
            for i, each in enumerate(self.ids)
            for j, p in enumerate(PROBES)
            if j < seen or each in self.pilot
        ]
        names = ["score_key", "origin", "sample_id", "probe_id", "nll_sum", "n_tokens"]
        store.append("pair_scores", pl.DataFrame(rows, schema=names, orient="row"))
        store.append(
            "control_scores",
            pl.DataFrame(
                [
                    {
                        "score_key": KEY.value,
                        "probe_id": p,
                        "control": "none",
                        "seed": 0,
                        "length": 0,
                        "n_context_tokens": 0,
                        "nll_sum": self.base[j] * 3,
                        "n_tokens": 3,
                        "truncated": False,
                    }
                    for j, p in enumerate(PROBES)
                ]
            ),
        )

    def contributions(self) -> np.ndarray:
        found = dict(peer_contributions(self.store, KEY, 0).select("sample_id", "peers").iter_rows())
        return np.array([found[each] for each in self.ids])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return pl.DataFrame({"a": one, "b": other}).select(pl.corr("a", "b", method="spearman")).item()


def test_a_planted_trend_with_length_is_taken_out_and_what_a_sample_is_worth_stays(tmp_path: Path) -> None:
    world = World(tmp_path, 400)
    against_nothing = np.mean((np.exp(world.base) - np.exp(world.nll)) / (np.exp(world.base) + 1e-6), axis=1)
    assert spearman(against_nothing, world.lengths) > 0.5
    contributions = world.contributions()
    assert abs(spearman(contributions, world.lengths)) < 0.12
    assert spearman(contributions, world.worth) > 0.95 > spearman(against_nothing, world.worth)


def test_contributions_are_those_of_the_formulas(tmp_path: Path) -> None:
    world = World(tmp_path, 100)
    drawn = draw(world.store, KEY, 0)
    curve = typical(drawn.lengths, drawn.nll, world.lengths)
    expected = [
        sum((math.exp(curve[i, j]) - math.exp(world.nll[i, j])) / (math.exp(world.base[j]) + 1e-6) for j in range(6))
        / 6
        for i in range(100)
    ]
    assert world.contributions() == pytest.approx(expected, abs=1e-10)
    of_drawn = dict(zip(drawn.sample_ids, peer_influences(drawn).mean(axis=1), strict=True))
    assert [of_drawn[each] for each in world.ids] == pytest.approx(expected, abs=1e-10)


def test_a_sample_that_lacks_probes_gets_the_estimate_of_its_known_ones(tmp_path: Path) -> None:
    whole = World(tmp_path / "a", 400)
    partial = World(tmp_path / "b", 400, seen=4)
    drawn = draw(partial.store, KEY, 0)
    assert set(drawn.sample_ids) == set(partial.pilot), "those with all probes, up to the first that lacks one"
    model = ProbeModel.fit(peer_influences(drawn), peer_influences(drawn))
    seen = np.array([True] * 4 + [False] * 2)
    i = next(i for i, each in enumerate(partial.ids) if each not in partial.pilot)
    curve = typical(drawn.lengths, drawn.nll, partial.lengths[i : i + 1])[0]
    x = (np.exp(curve) - np.exp(partial.nll[i])) / (np.exp(partial.base) + 1e-6)
    assert partial.contributions()[i] == pytest.approx(model.estimate(seen, x[:4][None])[0][0], abs=1e-10)
    assert spearman(partial.contributions(), whole.contributions()) > 0.97


def test_weights_are_what_an_estimate_is_made_of() -> None:
    x = np.random.default_rng(2).normal(size=(60, 6)) @ np.random.default_rng(3).normal(size=(6, 6))
    model = ProbeModel.fit(x, x[:30])
    seen = np.array([True, False, True, True, False, False])
    weights, constant = model.weights(seen)
    assert x[:, seen] @ weights + constant == pytest.approx(model.estimate(seen, x[:, seen])[0])
    weights, constant = model.weights(np.ones(6, bool))
    assert (weights.tolist(), constant) == ([1 / 6] * 6, 0)


def test_equal_pairs_get_equal_bits_whatever_lies_beside_them(tmp_path: Path) -> None:
    world = World(tmp_path, 60)
    before = peer_contributions(world.store, KEY, 0).sort("sample_id")
    rows = world.store.query("FROM delta.pair_scores").sample(fraction=1, shuffle=True, seed=3)
    world.store.replace("pair_scores", rows)
    assert peer_contributions(world.store, KEY, 0).sort("sample_id").equals(before)


def test_a_curve_bends_where_there_are_enough_samples_and_is_flat_beyond_them() -> None:
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.uniform(2, 7, 800))
    law = np.sin(np.log(lengths))[:, None] * [1.0, -2.0]
    at = np.exp(np.linspace(2.1, 6.9, 30))
    fitted = typical(lengths, law + draw.normal(0, 0.05, law.shape), at)
    assert np.abs(fitted - np.sin(np.log(at))[:, None] * [1.0, -2.0]).max() < 0.15
    beyond = typical(lengths, law, np.array([1, lengths.min(), lengths.max(), 9000]))
    assert beyond[0] == pytest.approx(beyond[1])
    assert beyond[3] == pytest.approx(beyond[2])


@pytest.mark.parametrize(("lengths", "expected"), [([8, 8, 8], [2.0, 2.0]), ([1, 10, 100], [1.0, 2.0])])
def test_of_few_samples_a_line_and_of_one_length_the_mean(lengths: list[int], expected: list[float]) -> None:
    assert typical(np.array(lengths), np.array([[1.0], [2.0], [3.0]]), np.array([1, 10]))[:, 0] == pytest.approx(
        expected
    )


def test_the_draw_is_bounded_and_part_of_the_larger_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, 60)
    whole = draw(world.store, KEY, 0).sample_ids
    assert sorted(whole) == world.ids
    assert draw(world.store, KEY, 0, most=10).sample_ids == whole[:10]
    assert draw(world.store, KEY, 1, most=10).sample_ids != whole[:10]
    monkeypatch.setattr(peers, "_MOST_PAIRS", 12 * len(PROBES))
    monkeypatch.setattr(peers, "_STREAMED_AT_ONCE", 7)
    assert draw(world.store, KEY, 0).sample_ids == whole[:12]
    few = world.contributions()
    assert len(few) == 60, "learned from twelve, computed for all"


def test_only_samples_that_have_scores_are_drawn_and_ranked(tmp_path: Path) -> None:
    """Pairs stay when fewer samples are to be scored directly; who ranks by contribution does not rank those."""
    world = World(tmp_path, 60)
    kept = world.store.query("FROM delta.sample_scores WHERE sample_id < '0040'")
    world.store.replace("sample_scores", kept)
    assert sorted(draw(world.store, KEY, 0).sample_ids) == world.ids[:40]
    assert sorted(peer_contributions(world.store, KEY, 0)["sample_id"]) == world.ids[:40]


def test_without_a_sample_on_every_probe_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="control peers: no sample is scored on every probe; materialize sample_scores"):
        draw(World(tmp_path, 3, seen=2).store, KEY, 0)
