"""Values of samples for single probes, against their formulas."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.scoring.peers import draw, typical
from icon_assets.core.selection.per_probe import BM25, COSINE, PerProbe
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings
from icon_assets_tests.conftest import put_embeddings
from icon_assets_tests.core.scoring.test_peers import KEY, PROBES, World


def per_probe(world: World) -> PerProbe:
    return PerProbe(world.store, KEY, ControlSettings(), 0)


def test_a_gain_is_the_nats_per_token_that_a_sample_saves(tmp_path: Path) -> None:
    world = World(tmp_path, 40)
    values = per_probe(world)
    assert values.sample_ids == world.ids
    assert values.probes["probe_id"].to_list() == PROBES
    assert values.values("none") == pytest.approx(world.base - world.nll, abs=1e-5)
    assert values.values("none").dtype == np.float32


def test_a_gain_against_peers_is_what_a_sample_saves_beyond_its_length(tmp_path: Path) -> None:
    world = World(tmp_path, 40)
    drawn = draw(world.store, KEY, 0)
    expected = typical(drawn.lengths, drawn.nll, world.lengths) - world.nll
    assert per_probe(world).values("peers") == pytest.approx(expected, abs=1e-5)


def test_a_pair_that_is_not_stored_has_no_value(tmp_path: Path) -> None:
    world = World(tmp_path, 40, seen=2)
    seen = ~np.isnan(per_probe(world).values("none"))
    assert seen[:, :2].all()
    assert seen[:, 2:].all(axis=1).tolist() == [each in world.pilot for each in world.ids]


def test_a_gain_against_random_tokens_is_interpolated_over_length(tmp_path: Path) -> None:
    world = World(tmp_path, 20)
    level = {8: 0.5, 2040: 0.1}
    controls = [
        {
            "score_key": KEY.value,
            "probe_id": p,
            "control": "random_tokens",
            "seed": seed,
            "length": n,
            "n_context_tokens": n,
            "nll_sum": (world.base[j] + extra) * 3,
            "n_tokens": 3,
            "truncated": False,
        }
        for j, p in enumerate(PROBES)
        for seed in (0, 1)
        for n, extra in level.items()
    ]
    world.store.append("control_scores", pl.DataFrame(controls))
    found = PerProbe(world.store, KEY, ControlSettings(lengths=(8, 2040)), 0).values("random_tokens")
    at = np.log(world.lengths / 8) / np.log(2040 / 8)
    control = world.base[None] + (0.5 + at * (0.1 - 0.5))[:, None]
    assert found == pytest.approx(control - world.nll, abs=1e-4)


def test_cosines_are_those_of_the_embeddings(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1)
    samples = {f"s{i}": numbers.normal(size=4) for i in range(9)}
    probes = {f"p{i}": numbers.normal(size=4) for i in range(3)}
    embeddings = put_embeddings(Store(tmp_path), samples, probes)
    found = PerProbe(embeddings.store, KEY, ControlSettings(), 0)
    units = [np.array([v / np.linalg.norm(v) for v in each.values()]) for each in (samples, probes)]
    assert embeddings.cosines(found.sample_ids) == pytest.approx(units[0] @ units[1].T, abs=1e-5)
    assert np.isnan(embeddings.cosines([*found.sample_ids, "t"])[-1]).all(), "a sample without an embedding"
    with pytest.raises(IconError, match="materialize probe_features"):
        found.values(COSINE)


def prompts(store: Store, pool: dict[str, str], probes: dict[str, str]) -> PerProbe:
    embeddings = put_embeddings(store, dict.fromkeys(pool, np.ones(2)), dict.fromkeys(probes, np.ones(2)))
    for table, name, texts in (("samples", "sample_id", pool), ("probe_candidates", "probe_id", probes)):
        rows = store.query(f'FROM delta."{table}"')
        texts_of = pl.col(name).replace_strict(texts, default="", return_dtype=pl.String)
        store.replace(table, rows.with_columns(instruction=texts_of, input=pl.lit("")))
    return PerProbe(embeddings.store, KEY, ControlSettings(), 0)


def test_bm25_of_prompts_is_that_of_the_formula(tmp_path: Path) -> None:
    """Lucene's form: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), k1 = 1.5, b = 0.75."""
    pool = {"s0": "sort the list of names", "s1": "write a poem on rain and rain", "s2": "rain", "s3": ""}
    found = prompts(Store(tmp_path), pool, {"p0": "a poem on RAIN", "p1": "zebra"}).values(BM25)

    def score(text: str, query: list[str]) -> float:
        documents = {name: [w for w in each.lower().split() if len(w) > 1] for name, each in pool.items()}
        mean = sum(map(len, documents.values())) / len(pool)
        words = [w for w in text.lower().split() if len(w) > 1]
        total = 0.0
        for word in query:
            n = sum(word in each for each in documents.values())
            tf = words.count(word)
            idf = np.log(1 + (len(pool) - n + 0.5) / (n + 0.5))
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    expected = [score(text, ["poem", "on", "rain"]) for text in pool.values()]
    assert found[:, 0] == pytest.approx(expected, abs=1e-5)
    assert found[:, 1].tolist() == [0, 0, 0, 0]


def test_bm25_of_prompts_without_any_word_is_zero(tmp_path: Path) -> None:
    found = prompts(Store(tmp_path), {"s0": "?", "s1": ""}, {"p0": "!", "p1": "word"}).values(BM25)
    assert found.tolist() == [[0, 0], [0, 0]]
