"""Round-robin over probes, and the sieve of near-duplicates, against plain loops."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icon_assets.core.errors import IconError
from icon_assets.core.features import embeddings, similarity
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.features.similarity import Rounds, Sieve, round_robin
from icon_assets.core.store.tables import Store
from icon_assets_tests.conftest import put_embeddings


def vectors(n: int, prefix: str, seed: int, dimensions: int = 6) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).normal(size=(n, dimensions))
    return {f"{prefix}{i:03}": vector for i, vector in enumerate(draw)}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def named_in_turn(samples: dict[str, np.ndarray], probes: dict[str, np.ndarray]) -> list[str]:
    """The definition: each probe in turn names its next most similar sample, and passes when that is named already."""
    lists = [sorted(samples, key=lambda s, p=p: (-round(cosine(samples[s], probes[p]), 6), s)) for p in sorted(probes)]
    named = dict.fromkeys(each[turn] for turn in range(len(samples)) for each in lists)
    return list(named)


@pytest.mark.parametrize("at_once", [2, 128])
def test_every_probe_names_its_most_similar_sample_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    samples = vectors(60, "s", 1)
    probes = vectors(5, "p", 2)
    samples["s059"] = samples["s000"] * 3
    monkeypatch.setattr(similarity, "_PROBES_AT_ONCE", at_once)
    monkeypatch.setattr(embeddings, "_CHUNK_ROWS", 7)
    ranking = round_robin(put_embeddings(Store(tmp_path), samples, probes))
    assert ranking["sample_id"].to_list() == named_in_turn(samples, probes)
    by_first = cosine(samples[ranking["sample_id"][0]], probes["p000"])
    assert ranking["score"][0] == pytest.approx(by_first, abs=1e-5)
    few = sorted(samples)[::2]
    asked = [1, 3, 4]
    rounds = Rounds(put_embeddings(Store(tmp_path / "few"), samples, probes), few)
    named = [few[number] for number in rounds.order(np.array(asked))]
    assert named == named_in_turn(
        {each: samples[each] for each in few}, {f"p{i:03}": probes[f"p{i:03}"] for i in asked}
    )


def test_a_probe_that_everything_resembles_does_not_take_it_all(tmp_path: Path) -> None:
    samples = {f"a{i}": np.array([1, 0.01 * i, 0]) for i in range(5)} | {
        f"b{i}": np.array([0.1, 0.1 * i, 1]) for i in range(5)
    }
    ranking = round_robin(
        put_embeddings(Store(tmp_path), samples, {"p": np.array([1.0, 0, 0]), "q": np.array([0, 0, 1.0])})
    )
    assert {name[0] for name in ranking["sample_id"].head(2)} == {"a", "b"}
    assert sorted(ranking["sample_id"]) == sorted(samples)


def test_without_probe_embeddings_it_says_what_to_make(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="materialize probe_features"):
        round_robin(put_embeddings(Store(tmp_path), vectors(3, "s", 1)))


def test_vectors_come_in_the_order_asked_for(tmp_path: Path) -> None:
    samples = vectors(9, "s", 1)
    embeddings = put_embeddings(Store(tmp_path), samples)
    got = embeddings.of(["s007", "s001", "s004"])
    assert [
        cosine(row, samples[name]) for row, name in zip(got, ("s007", "s001", "s004"), strict=True)
    ] == pytest.approx([1] * 3)
    assert np.linalg.norm(got, axis=1) == pytest.approx([1] * 3)
    assert embeddings.has(["s007", "s001"])
    assert not embeddings.has(["s007", "other"])
    assert not Embeddings(Store(tmp_path), "another key").has(["s007"])


@given(seed=st.integers(0, 1000), limit=st.floats(0.1, 0.99), cut=st.integers(1, 50))
@settings(max_examples=50)
def test_a_vector_passes_unless_one_before_it_that_passed_is_nearer_than_the_limit(
    seed: int, limit: float, cut: int
) -> None:
    rows = np.array(list(vectors(50, "s", seed, 3).values()), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept: list[int] = []
    for i, row in enumerate(rows):
        if all(np.round(row @ rows[k], 6) <= limit for k in kept):
            kept.append(i)
    sieve = Sieve(limit)
    passes = np.concatenate([sieve.passes(rows[:cut]), sieve.passes(rows[cut:])])
    assert np.flatnonzero(passes).tolist() == kept


def test_parts_of_the_sieve_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_SIEVED_AT_ONCE", 4)
    rows = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 2, 0, 2, 1, 2]]
    assert np.flatnonzero(Sieve(0.9).passes(rows)).tolist() == [0, 1, 4]
    assert Sieve(0.9).passes(rows[:0]).tolist() == []
