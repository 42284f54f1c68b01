"""The light selector on planted signals, its report against textbook figures, and the classifier on a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.model.flops import Work, context_work
from icon_assets.core.model.loading import load_tokenizer
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.selector.classifier import Classifier
from icon_assets.core.selector.learning import is_top, part_of, scored_samples
from icon_assets.core.selector.light import (
    Light,
    light_inputs,
    normal_ranks,
    out_of_fold,
    predict_by_features,
    relearn,
    train_light,
)
from icon_assets.core.selector.lora import train_classifier
from icon_assets.core.selector.skill import crowding, skill
from icon_assets.core.store.tables import Store
from icon_assets.settings import ClassifierSettings, SelectorSettings
from icon_assets_tests.conftest import put_shards

KEY = ScoreKey("model", "float32", "alpaca", "\n", 64, 64, 64)
N = 240
WIDTH = 24
SCORED = 160


class World:
    """A store with features of made-up samples, and scores of the first ones by their ids.

    Contribution is `signal` of one direction of the embedding, `length` of the log length, and noise.
    """

    def __init__(self, root: Path, signal: float, length: float) -> None:
        draw = np.random.default_rng(4)
        self.store = Store(root)
        self.ids = sorted(digest(number) for number in range(N))
        tokens = draw.integers(5, 200, N)
        embedding = draw.normal(size=(N, WIDTH))
        value = signal * embedding[:, 3] + length * np.log(tokens) + draw.normal(size=N)
        self.truth = dict(zip(self.ids, value.tolist(), strict=True))
        rows = pl.DataFrame(
            {
                "sample_id": self.ids,
                "shard": [f"s{i % 2}" for i in range(N)],
                "n": tokens,
                "embedding": embedding.astype("f4").tolist(),
                "contribution": value,
            },
            schema_overrides={"embedding": pl.List(pl.Float32)},
        )
        text = [pl.lit(x).alias(x) for x in ("file", "instruction", "input", "response", "turns", "metadata")]
        for (shard,), part in rows.group_by("shard"):
            samples = part.with_columns(*text, pl.lit(1).alias("row"), n_chars=pl.col("n") * 4)
            self.store.replace("samples", samples, shard=str(shard))
            self.store.append(
                "sample_features",
                part.with_columns(
                    score_key=pl.lit(KEY.value),
                    origin=pl.col("shard"),
                    n_tokens="n",
                    nll_sum=pl.col("n") * 2.0,
                    nll_alone=pl.col("n") * 2.5,
                    truncated=pl.lit(False),
                ),
            )
            scored = part.filter(pl.col("sample_id").is_in(self.ids[:SCORED]))
            figures = ("consistency", "stability", "coverage", "significance", "standard_error")
            self.store.replace(
                "sample_scores",
                scored.with_columns(
                    *(pl.lit(0.0).alias(name) for name in figures),
                    score_key=pl.lit(KEY.value),
                    control=pl.lit("none"),
                    n_probes=pl.lit(4),
                    n_context_tokens="n",
                    truncated=pl.lit(False),
                ),
                shard=str(shard),
                score_key=KEY.value,
            )
        put_shards(self.store, "s0", "s1")

    def train(self, directory: Path, **choices: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The scored samples, and the report on the light selector that learned from them."""
        directory.mkdir()
        chosen = SelectorSettings(**choices)
        scored = scored_samples(self.store, KEY, "none", chosen.samples)
        trained = train_light(self.store, KEY, scored, chosen, directory)
        return scored, skill(scored, trained.held_out, chosen)


def figure(metrics: pl.DataFrame, predictor: str, metric: str) -> tuple[float, float, float]:
    row = metrics.filter((pl.col("predictor") == predictor) & (pl.col("metric") == metric))
    return row.select("value", "low", "high").row(0)


def test_a_planted_signal_is_found_and_told_from_length(tmp_path: Path) -> None:
    _, metrics = World(tmp_path / "store", signal=3, length=0.2).train(tmp_path / "model")
    value, low, high = figure(metrics, "selector", "spearman")
    assert low < value < high
    assert low > 0.6
    assert figure(metrics, "selector", "partial_spearman")[1] > 0.6
    assert figure(metrics, "selector", "auc")[1] > 0.8 > figure(metrics, "length", "auc")[0]
    assert figure(metrics, "selector", "average_precision")[1] > figure(metrics, "random", "average_precision")[2]
    assert metrics.filter((pl.col("predictor") == "length") & (pl.col("metric") == "partial_spearman")).is_empty()


def test_noise_is_reported_as_no_skill(tmp_path: Path) -> None:
    _, metrics = World(tmp_path / "store", signal=0, length=0).train(tmp_path / "model")
    for metric, chance in (("spearman", 0), ("partial_spearman", 0), ("auc", 0.5)):
        value, low, high = figure(metrics, "selector", metric)
        assert low < chance < high, (metric, value)


def test_inputs_that_say_nothing_predict_nothing() -> None:
    """Not the mean of the other folds: that is high exactly where the held-out fold is low."""
    ids = [digest(number) for number in range(40)]
    target = normal_ranks(pl.Series(range(40)))
    assert not out_of_fold(np.ones((40, 3)), target, ids, SelectorSettings()).any()


def test_learning_anew_by_the_same_contributions_gives_what_the_selector_said_and_each_draw_is_learned_alone(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "store", signal=3, length=0)
    scored = scored_samples(world.store, KEY, "none", 1000).sample(fraction=1, shuffle=True, seed=1)
    (tmp_path / "model").mkdir()
    trained = train_light(world.store, KEY, scored, SelectorSettings(), tmp_path / "model")
    again = relearn(world.store, KEY, scored["sample_id"].to_list(), SelectorSettings())
    values = scored["contribution"].to_numpy()
    said = again(np.column_stack([values, -values, np.random.default_rng(1).normal(size=len(values))]))
    own = scored.select("sample_id").join(trained.held_out, on="sample_id", maintain_order="left")["score"].to_numpy()
    assert said[:, 0] == pytest.approx(own)
    assert said[:, 1] == pytest.approx(-own)


def test_a_selector_that_knows_length_alone_is_seen_through(tmp_path: Path) -> None:
    _, metrics = World(tmp_path / "store", signal=0, length=3).train(tmp_path / "model")
    assert figure(metrics, "selector", "spearman")[1] > 0.6
    assert figure(metrics, "selector", "partial_spearman")[0] < 0.25


def test_every_sample_is_predicted_and_those_learned_from_by_models_that_had_not_seen_them(tmp_path: Path) -> None:
    world = World(tmp_path / "store", signal=3, length=0)
    scored, _ = world.train(tmp_path / "model")
    parts = [
        frame for shard in ("s0", "s1") for frame in predict_by_features(world.store, KEY, shard, tmp_path / "model")
    ]
    predicted = dict(pl.concat(parts).iter_rows())
    assert sorted(predicted) == world.ids
    others = world.ids[SCORED:]
    assert np.corrcoef([predicted[i] for i in others], [world.truth[i] for i in others])[0, 1] > 0.8

    # A sample's own contribution must not move its prediction: turn one around and train again.
    own = scored["sample_id"][7]
    scores = world.store.query("FROM delta.sample_scores").with_columns(
        contribution=pl.when(pl.col("sample_id") == own).then(-pl.col("contribution")).otherwise("contribution")
    )
    world.store.replace("sample_scores", scores)
    world.train(tmp_path / "again")
    again = pl.concat(
        [f for shard in ("s0", "s1") for f in predict_by_features(world.store, KEY, shard, tmp_path / "again")]
    )
    moved = {i: abs(score - predicted[i]) for i, score in again.iter_rows()}
    assert moved[own] < 0.02, "only the ranks of the others move it"
    assert max(moved.values()) > 0


def test_a_model_is_data_and_comes_back_equal(tmp_path: Path) -> None:
    _, __ = World(tmp_path / "store", signal=3, length=0).train(tmp_path / "model")
    assert sorted(path.suffix for path in (tmp_path / "model").iterdir()) == [".json", ".safetensors"], "no pickle"
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(60, 5))
    model = Light.fit(inputs, inputs[:, 0])
    model.save(tmp_path / "model")
    assert np.array_equal(Light.load(tmp_path / "model").predict(inputs), model.predict(inputs))


def test_too_few_scores_and_missing_features_are_refused_with_the_mend(tmp_path: Path) -> None:
    world = World(tmp_path / "store", signal=1, length=0)
    with pytest.raises(
        IconError, match=r"0 samples are scored under control random_tokens, 20 are needed; raise scoring"
    ):
        scored_samples(world.store, KEY, "random_tokens", 1000)
    lacking = world.store.query("FROM delta.sample_features").filter(pl.col("sample_id") != world.ids[3])
    world.store.replace("sample_features", lacking)
    with pytest.raises(IconError, match="1 of 160 scored samples have no features; materialize sample_features"):
        world.train(tmp_path / "model")
    with pytest.raises(IconError, match="held-out samples are all of one class; score more"):
        skill(
            pl.DataFrame({"sample_id": ["a"], "contribution": [1.0], "n_context_tokens": [3]}),
            pl.DataFrame({"sample_id": ["a"], "score": [1.0]}),
            SelectorSettings(),
        )


def test_at_most_so_many_samples_are_learned_from_and_growth_keeps_them(tmp_path: Path) -> None:
    world = World(tmp_path / "store", signal=1, length=0)
    scored, _ = world.train(tmp_path / "model", samples=50)
    assert scored["sample_id"].to_list() == world.ids[:50]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_top_of_a_smaller_fraction_lies_in_that_of_a_larger(values: list[float], a: float, b: float) -> None:
    smaller, larger = (is_top(pl.Series(values), fraction) for fraction in sorted((a, b)))
    assert (larger | ~smaller).all()
    assert smaller.sum() == -(-min(a, b) * len(values) // 1)


@given(st.text(min_size=1), st.integers(0, 9), st.integers(2, 20))
def test_a_sample_keeps_its_part(sample_id: str, seed: int, parts: int) -> None:
    assert 0 <= part_of(sample_id, seed, parts) < parts
    assert part_of(sample_id, seed, parts) == part_of(sample_id, seed, parts)


@settings(max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_normal_ranks_keep_the_order_and_are_centred(values: list[float]) -> None:
    ranks = normal_ranks(pl.Series(values))
    order = np.argsort(values, kind="stable")
    assert (np.diff(ranks[order]) >= -1e-12).all()
    assert abs(ranks.mean()) < 0.35


def test_inputs_are_lengths_perplexities_and_the_embedding() -> None:
    row = {"n_tokens": [3], "n_chars": [7], "nll_sum": [6.0], "nll_alone": [9.0], "embedding": [[0.5, -1.0]]}
    assert light_inputs(pl.DataFrame(row)).tolist() == [[np.log1p(3), np.log1p(7), 2.0, 3.0, 0.5, -1.0]]


# Classifier

CHOICES = ClassifierSettings(epochs=4, learning_rate=0.01, batch_size=16, micro_batch_size=8, dropout=0.0)


def _labelled(n: int, rare: int) -> tuple[list[list[int]], np.ndarray]:
    """Texts that end with one of two tokens; the label says which. One of `rare` is labelled 1."""
    draw = np.random.default_rng(1)
    labels = np.arange(n) % rare == 0
    words = [draw.integers(100, 300, int(draw.integers(2, 9))).tolist() for _ in labels]
    return [[0, *said, 50 if label else 90] for said, label in zip(words, labels, strict=True)], labels


def test_the_classifier_learns_its_head_too_and_comes_back_equal(tiny_model_dir: Path, tmp_path: Path) -> None:
    texts, labels = _labelled(80, 6)
    model = Classifier.new(tiny_model_dir, CHOICES, 0, "float32", "cpu")
    before = {name: p.detach().clone() for name, p in model.model.named_parameters() if p.requires_grad}
    assert {"score" in name or "lora" in name for name in before} == {True}
    precision = model.train(texts[:60], labels[:60], texts[60:], labels[60:], CHOICES, 0, lambda *_: None)
    after = dict(model.model.named_parameters())
    assert all((after[name] != p).any() for name, p in before.items() if "score" in name), "the head is trained"
    assert len(precision) == 4
    assert max(precision) > 0.8, "by chance: one in six"
    model.save(tmp_path, "tiny")
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors")]
    assert str(tiny_model_dir) not in (tmp_path / "adapter_config.json").read_text()
    loaded = Classifier.load(tiny_model_dir, tmp_path, "float32", "cpu")
    assert loaded.predict(texts).tolist() == pytest.approx(model.predict(texts).tolist(), abs=1e-5)


def test_the_best_epoch_is_kept(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = _labelled(48, 3)
    model = Classifier.new(tiny_model_dir, CHOICES, 0, "float32", "cpu")
    rising = [0.2, 0.9, 0.3, 0.1]
    scores = iter(rising)
    monkeypatch.setattr("sklearn.metrics.average_precision_score", lambda *_: next(scores))
    states = []

    def note(epoch: int, precision: float) -> None:
        states.append(model.predict(texts))

    assert model.train(texts[:40], labels[:40], texts[40:], labels[40:], CHOICES, 0, note) == rising
    assert model.predict(texts).tolist() == pytest.approx(states[1].tolist(), abs=1e-6)
    assert np.abs(states[1] - states[3]).max() > 1e-4


def test_both_classes_weigh_the_same(tiny_model_dir: Path) -> None:
    """Texts that are all the same: what is learned of them is how often a label weighs, and that is half."""
    texts = [[0, 100, 101]] * 128
    labels = np.arange(128) % 8 == 0
    model = Classifier.new(tiny_model_dir, CHOICES, 0, "float32", "cpu")
    model.train(texts, labels, texts, labels, CHOICES.model_copy(update={"epochs": 8}), 0, lambda *_: None)
    assert 0.3 < model.predict(texts[:1])[0] < 0.7, "not one in eight"


def test_passes_are_counted_without_padding(tiny_model_dir: Path) -> None:
    texts = [[0, 5, 6, 7], [0, 8]]
    labels = np.array([True, False])
    model = Classifier.new(tiny_model_dir, CHOICES, 0, "float32", "cpu")
    model.train(texts, labels, texts, labels, CHOICES.model_copy(update={"epochs": 3}), 0, lambda *_: None)
    once = context_work(4) + context_work(2)
    assert (model.passes.learned, model.passes.read) == (once * 3, once * 3)
    assert (model.passes.texts, model.passes.forwards) == (12, 6)
    assert once == Work(6, 13, 0)
    assert model.adapter_parameters == 2 * (8 * (32 + 32) + 8 * (32 + 16)), "q and v of two layers, rank 8"


def test_the_tenth_that_is_reported_on_neither_trains_nor_chooses(tiny_model_dir: Path, tmp_path: Path) -> None:
    world = World(tmp_path / "store", signal=1, length=0)
    for (shard,), rows in world.store.query("FROM delta.samples").group_by("shard"):
        asked = pl.format("Say {}.", pl.col("sample_id").str.head(4))
        world.store.replace(
            "samples", rows.with_columns(instruction=asked, turns=pl.lit(None, pl.String)), shard=str(shard)
        )
    scored = scored_samples(world.store, KEY, "none", 1000)
    record = ModelRecord("tiny", "", tiny_model_dir, "model", 1, 2, 32, 400, 512)
    chosen = SelectorSettings(kind="lora", top_fraction=0.4, lora=CHOICES.model_copy(update={"epochs": 1}))
    (tmp_path / "model").mkdir()
    trained = train_classifier(
        world.store,
        KEY,
        record,
        Encoder(load_tokenizer(tiny_model_dir), KEY),
        scored,
        chosen,
        tmp_path / "model",
        "float32",
        "cpu",
        lambda *_: None,
    )
    parts = {i: part_of(i, 0, 10) for i in scored["sample_id"]}
    assert trained.in_sample is not None
    assert {parts[i] for i in trained.held_out["sample_id"]} == {0}
    assert {parts[i] for i in trained.in_sample["sample_id"]} == set(range(2, 10)), "the part left over chose the epoch"
    assert trained.n_train == trained.in_sample.height
    assert set(skill(scored, trained.held_out, chosen)["predictor"]) == {"selector", "length", "random"}


def test_a_selector_that_knows_answers_by_heart_is_seen_to_crowd_the_top() -> None:
    draw = np.random.default_rng(0)

    def rows(scores: np.ndarray) -> pl.DataFrame:
        return pl.DataFrame({"sample_id": [digest(float(s)) for s in scores], "score": scores})

    held_out, fair, by_heart = (draw.normal(size=n) for n in (100, 400, 400))
    settings = SelectorSettings(top_fraction=0.2)
    alike = crowding(rows(fair), rows(held_out), settings)
    assert (
        figure(alike, "selector", "top_share_trained_on")[1]
        < 0.2
        < figure(alike, "selector", "top_share_trained_on")[2]
    )
    assert figure(alike, "selector", "top_share_held_out")[1] < 0.2 < figure(alike, "selector", "top_share_held_out")[2]
    by_heart[:80] += 5
    crowded = crowding(rows(by_heart), rows(held_out), settings)
    assert (
        figure(crowded, "selector", "top_share_trained_on")[1]
        > 0.2
        > figure(crowded, "selector", "top_share_held_out")[2]
    )


def test_targets_that_the_model_lacks_are_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(IconError, match=r"selector.lora.targets: \('nowhere',\).*name modules of it, or all-linear"):
        Classifier.new(tiny_model_dir, CHOICES.model_copy(update={"targets": ("nowhere",)}), 0, "float32", "cpu")
