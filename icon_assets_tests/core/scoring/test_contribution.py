"""Contribution as SQL over stored pairs, against the formulas written out in Python."""

import math
import random
from itertools import pairwise
from typing import Any

import polars as pl
import pytest

from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.contribution import contributions
from icon_assets.core.scoring.scorer import PAIR_KEY
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings
from icon_assets_tests.conftest import put_shards

SAMPLES = {"s1": 20, "s2": 16, "s3": 400, "s4": 5}  # context tokens
KEY = ScoreKey("model", "float32", "alpaca", "\n", 2040, 64, 64)
PROBES = [f"p{i}" for i in range(6)]
LENGTHS = [16, 64, 256]
SEEDS = [0, 1]
CHARS = 7  # characters per context token in this made-up world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict, dict, dict]:
    """A store with random pairs and controls, and the same figures as plain dictionaries."""
    draw = random.Random(3)
    store = Store(tmp_path_factory.mktemp("store"))
    n_tokens = {p: draw.randint(1, 9) for p in PROBES}
    pair = {(s, p): draw.uniform(0.5, 4) * n_tokens[p] for s in SAMPLES for p in PROBES}
    control = {("none", 0, 0, p): draw.uniform(0.5, 4) * n_tokens[p] for p in PROBES}
    control |= {
        ("random_tokens", seed, length, p): draw.uniform(0.5, 4) * n_tokens[p]
        for seed in [*SEEDS, 99]
        for length in LENGTHS
        for p in PROBES
    }
    control |= {
        ("random_chars", seed, size * CHARS, p): draw.uniform(0.5, 4) * n_tokens[p]
        for seed in SEEDS
        for size in SAMPLES.values()
        for p in PROBES
    }
    text = {
        "file": "f",
        "instruction": "i",
        "input": "",
        "response": "r",
        "turns": None,
        "n_chars": 1,
        "metadata": None,
    }
    samples = [{"shard": "a", "row": i, "sample_id": s, **text} for i, s in enumerate([*SAMPLES, "s1"])]
    probes = [{"probe_id": p, "stratum": "x", "status": "selected", "detail": "", **text, "row": 1} for p in PROBES]
    probes.append({**probes[0], "probe_id": "gone", "status": "spare"})
    store.replace(
        "samples",
        pl.DataFrame(samples, schema_overrides={"turns": pl.String, "metadata": pl.String}),
        shard="a",
    )
    put_shards(store, "a")
    store.replace("probe_candidates", pl.DataFrame(probes, schema_overrides={"turns": pl.String}))
    store.append(
        "contexts",
        pl.DataFrame(
            [
                {
                    "score_key": KEY.value,
                    "sample_id": s,
                    "origin": "a",
                    "n_context_tokens": n,
                    "n_context_chars": n * CHARS,
                    "truncated": n > 300,
                }
                for s, n in SAMPLES.items()
            ]
        ),
    )
    rows = [(KEY.value, "a", s, p, nll, n_tokens[p]) for (s, p), nll in pair.items()]
    rows += [(KEY.value, "a", "s1", "gone", 99.0, 1), ("other", "a", "s1", "p0", 99.0, 1)]
    store.append(
        "pair_scores",
        pl.DataFrame(
            rows, schema=["score_key", "origin", "sample_id", "probe_id", "nll_sum", "n_tokens"], orient="row"
        ),
    )
    store.append(
        "control_scores",
        pl.DataFrame(
            [
                {
                    "score_key": KEY.value,
                    "probe_id": p,
                    "control": c,
                    "seed": seed,
                    "length": length,
                    "n_context_tokens": length,
                    "nll_sum": nll,
                    "n_tokens": n_tokens[p],
                    "truncated": False,
                }
                for (c, seed, length, p), nll in control.items()
            ]
        ),
    )
    return store, pair, control, n_tokens


def expected(control: str, sample: str, pair: dict, controls: dict, n_tokens: dict) -> list[float]:
    """Influence of one sample on every probe, by the method's formulas."""
    influences = []
    for p in PROBES:
        base = math.exp(controls["none", 0, 0, p] / n_tokens[p])
        if control == "none":
            against = base
        elif control == "random_chars":
            drawn = [controls[control, seed, SAMPLES[sample] * CHARS, p] / n_tokens[p] for seed in SEEDS]
            against = math.exp(sum(drawn) / len(drawn))
        else:
            at = {n: sum(controls[control, seed, n, p] for seed in SEEDS) / len(SEEDS) / n_tokens[p] for n in LENGTHS}
            against = math.exp(interpolate(at, SAMPLES[sample]))
        influences.append((against - math.exp(pair[sample, p] / n_tokens[p])) / (base + 1e-6))
    return influences


def interpolate(at: dict[int, float], size: int) -> float:
    size = min(max(size, min(at)), max(at))
    for low, high in pairwise(sorted(at)):
        if low <= size <= high:
            share = math.log(size / low) / math.log(high / low)
            return at[low] + share * (at[high] - at[low])
    raise AssertionError


def query(store: Store, controls: list[str]) -> pl.DataFrame:
    kinds: Any = ("none", *controls)
    frame = contributions(
        store, KEY, "a", ControlSettings(kinds=kinds, seed=SEEDS[0], draws=len(SEEDS), lengths=tuple(LENGTHS))
    )
    return frame.filter(pl.col("control").is_in(controls))


@pytest.mark.parametrize("control", ["none", "random_tokens", "random_chars"])
def test_every_figure_equals_the_formulas(world: tuple[Store, dict, dict, dict], control: str) -> None:
    store, pair, controls, n_tokens = world
    rows = {row["sample_id"]: row for row in query(store, [control]).iter_rows(named=True)}
    assert set(rows) == set(SAMPLES)
    for sample, row in rows.items():
        xs = expected(control, sample, pair, controls, n_tokens)
        mean = sum(xs) / len(xs)
        assert row["contribution"] == pytest.approx(mean, abs=1e-9)
        assert row["consistency"] == pytest.approx(sum(x > 0 for x in xs) / len(xs))
        assert row["coverage"] == pytest.approx(sum(x > 0.5 for x in xs) / len(xs))
        assert row["stability"] == pytest.approx(sum((x - mean) ** 2 for x in xs) / len(xs))
        clamped = 1 if mean > 0.5 else -1 if mean < -0.5 else 2 / (1 + math.exp(-50 * mean)) - 1
        assert row["significance"] == pytest.approx(clamped)
        assert (row["n_probes"], row["n_context_tokens"], row["truncated"]) == (
            6,
            SAMPLES[sample],
            SAMPLES[sample] > 300,
        )


def test_only_the_asked_controls_are_reported_best_first(world: tuple[Store, dict, dict, dict]) -> None:
    frame = query(world[0], ["none", "random_tokens"])
    assert frame["control"].unique().sort().to_list() == ["none", "random_tokens"]
    for _, rows in frame.group_by("control"):
        assert rows["contribution"].to_list() == sorted(rows["contribution"], reverse=True)


def test_an_empty_context_would_change_nothing(world: tuple[Store, dict, dict, dict]) -> None:
    """A sample whose pairs equal the baseline contributes exactly 0 against no context."""
    store, _, controls, n_tokens = world
    same = [(KEY.value, "a", "s0", p, controls["none", 0, 0, p], n_tokens[p]) for p in PROBES]
    fresh = Store(store.root.parent / "empty_context")
    for table in ("shards", "probe_candidates", "control_scores"):
        fresh.append(table, store.query(f"FROM delta.{table}"))
    columns = store.query('FROM delta.samples WHERE "row" = 0').with_columns(sample_id=pl.lit("s0"))
    fresh.append("samples", columns)
    fresh.append("contexts", store.query("FROM delta.contexts LIMIT 1").with_columns(sample_id=pl.lit("s0")))
    fresh.append(
        "pair_scores",
        pl.DataFrame(
            same, schema=["score_key", "origin", "sample_id", "probe_id", "nll_sum", "n_tokens"], orient="row"
        ),
    )
    assert query(fresh, ["none"])["contribution"].to_list() == [0.0]


def test_pairs_of_other_shards_are_not_even_opened(world: tuple[Store, dict, dict, dict]) -> None:
    """What a shard costs must not grow with what is stored already."""
    store, *_ = world
    large = Store(store.root.parent / "large")
    for table in ("shards", "samples", "probe_candidates", "control_scores", "contexts", "pair_scores"):
        large.append(table, store.query(f"FROM delta.{table}"))
    other = large.query("FROM delta.pair_scores").with_columns(origin=pl.lit("b"), sample_id=pl.lit("elsewhere"))
    assert large.append_new("pair_scores", other, PAIR_KEY) == len(PROBES) + 2
    for file in large.root.glob("tables/pair_scores/**/origin=b/*.parquet"):
        file.write_text("not to be opened")
    assert query(large, ["none"]).equals(query(store, ["none"]))
    asked = {"score_key": KEY.value, "shard": "a", "samples": None, "probes": None, "ceiling": None}
    assert large.query(sql_text("missing_pairs.sql"), asked).is_empty()
    again = large.query("FROM delta.pair_scores WHERE origin = 'a'")
    assert large.append_new("pair_scores", again, PAIR_KEY) == 0
