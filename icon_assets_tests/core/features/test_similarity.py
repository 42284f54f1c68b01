"""Embeddings, and the sieve of near-duplicates, against plain loops."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icon_assets.core.errors import IconError
from icon_assets.core.features import similarity
from icon_assets.core.features.embeddings import Embeddings
from icon_assets.core.features.similarity import Sieve
from icon_assets.core.store.tables import Store
from icon_assets_tests.conftest import put_embeddings


def vectors(n: int, prefix: str, seed: int, dimensions: int = 6) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).normal(size=(n, dimensions))
    return {f"{prefix}{i:03}": vector for i, vector in enumerate(draw)}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_without_probe_embeddings_it_says_what_to_make(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="materialize probe_features"):
        put_embeddings(Store(tmp_path), vectors(3, "s", 1)).cosines([])


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
