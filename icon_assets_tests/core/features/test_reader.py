"""Features of samples against plain forwards of the unchanged model, one text at a time."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from icon_assets.core.encoding.tokens import Encoded, leading_ids
from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.errors import IconError
from icon_assets.core.features.reader import Reader, Reading, read
from icon_assets.core.model.flops import ModelShape
from icon_assets.core.model.loading import LanguageModel
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.scorer import Scorer
from icon_assets.core.store.tables import Store
from icon_assets.settings import ScoringSettings
from icon_assets_tests.conftest import make_model, make_tokenizer, put_shards

TEXTS = [
    Encoded(tuple(range(100, 112)), tuple(range(200, 209))),
    Encoded((5, 6, 7), (42,)),
    Encoded((8,), (50, 51)),
    Encoded(tuple(range(120, 150)), tuple(range(300, 303))),
]
# The third has a model that does more after its layers than a product with the head.
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt_neox", {}),
    ("cohere", {"logit_scale": 0.3, "tie_word_embeddings": True}),
    ("gemma2", {"final_logit_softcapping": 3.0}),
]
KEY = ScoreKey("model", "float32", "alpaca", "\n", 64, 64, 64)


def language_model(kind: str, bos: bool, **overrides: Any) -> LanguageModel:
    tokenizer = make_tokenizer(bos)
    return LanguageModel(make_model(kind, **overrides), tokenizer, torch.device("cpu"), leading_ids(tokenizer))


def plain(loaded: LanguageModel, text: Encoded) -> tuple[float, float, torch.Tensor]:
    """NLL of the response behind its prompt and by itself, and the embedding: by the formulas."""
    leading = list(loaded.leading)
    prompt = list(text.prompt_ids)
    response = list(text.response_ids)
    with torch.no_grad():
        output = loaded.model(torch.tensor([[*leading, *prompt, *response]]), output_hidden_states=True)
        given = _nll(output.logits[0], len(leading) + len(prompt), response)
        alone = given[:1]
        if leading or len(response) > 1:
            logits = loaded.model(torch.tensor([[*leading, *response]])).logits[0]
            alone = _nll(logits, 1, response) if leading else [given[0], *_nll(logits, 1, response[1:])]
    states = output.hidden_states[-1][0][len(leading) :].double()
    weights = torch.arange(1, len(states) + 1).double()
    return sum(given), sum(alone), (weights[:, None] * states).sum(0) / weights.sum()


def _nll(logits: torch.Tensor, first: int, tokens: list[int]) -> list[float]:
    chances = logits.double().log_softmax(-1)
    return [-chances[first - 1 + i, token].item() for i, token in enumerate(tokens)]


@pytest.mark.parametrize("bos", [True, False], ids=["with BOS", "without BOS"])
@pytest.mark.parametrize(("kind", "overrides"), SHAPES, ids=[kind for kind, _ in SHAPES])
@pytest.mark.parametrize("budget", [40, 4096])
def test_features_equal_one_plain_forward_per_text(
    kind: str, overrides: dict[str, Any], bos: bool, budget: int
) -> None:
    loaded = language_model(kind, bos, **overrides)
    engine = ScoringEngine(loaded, budget)
    found = dict[int, Reading]()
    for together in read(engine, TEXTS):
        found |= together
    assert engine.meter.forwards < 2 * len(TEXTS), "texts share forwards"
    assert engine.meter.pairs == len(TEXTS)
    for index, text in enumerate(TEXTS):
        given, alone, embedding = plain(loaded, text)
        reading = found[index]
        assert reading.n_tokens == len(text.response_ids)
        assert reading.nll_sum == pytest.approx(given, abs=1e-3)
        assert reading.nll_alone == pytest.approx(alone, abs=1e-3)
        assert reading.embedding == pytest.approx(embedding.tolist(), abs=1e-4)
        assert given > 0.5, "weights so small that any mistake would pass"
    assert abs(found[0].nll_sum - found[0].nll_alone) > 0.01, "the prompt matters"


def test_without_a_bos_the_first_token_cancels() -> None:
    engine = ScoringEngine(language_model("llama", bos=False), 4096)
    (found,) = read(engine, [Encoded((5, 6, 7), (42,))])
    assert found[0].nll_sum == found[0].nll_alone, "a single token that nothing predicts says nothing about its prompt"


def test_texts_that_do_not_fit_together_are_read_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = language_model("llama", bos=True)
    engine = ScoringEngine(loaded, 4096)
    whole = {i: r for found in read(engine, TEXTS) for i, r in found.items()}
    unlimited = loaded.model.model.forward

    def limited(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError
        return unlimited(*args, **kwargs)

    monkeypatch.setattr(loaded.model.model, "forward", limited)
    limit = 50
    parts = {i: r for found in read(engine, TEXTS) for i, r in found.items()}
    assert all(parts[i].nll_sum == pytest.approx(whole[i].nll_sum, abs=1e-4) for i in whole)
    limit = 20
    with pytest.raises(IconError, match=r"out of memory on one sample of 22 tokens; lower scoring\.max_prompt"):
        list(read(engine, TEXTS[:1]))


# Over a store


class World:
    """A store with a few samples in two shards (one of them in both) and probes, and what reads them."""

    def __init__(self, root: Path, commit_seconds: float = 1e-9) -> None:
        self.store = Store(root)
        self.engine = ScoringEngine(language_model("llama", bos=True), 64)
        self.settings = ScoringSettings(commit_seconds=commit_seconds)
        text = {"file": "f", "input": "", "turns": None, "metadata": None, "n_chars": 1}
        for shard, numbers in (("a", range(12)), ("b", range(11, 15))):
            rows = [
                {
                    "shard": shard,
                    "row": row,
                    "sample_id": f"s{n:02}",
                    "instruction": f"Name {n}.",
                    "response": f"{n * 7} " * (1 + n % 4),
                }
                | text
                for row, n in enumerate(numbers, 1)
            ]
            self.store.replace("samples", _texts(rows), shard=shard)
        put_shards(self.store, "a", "b")
        probe = {"stratum": "x", "status": "selected", "detail": "", "row": 1} | text
        self.store.replace(
            "probe_candidates",
            _texts(
                [{"probe_id": f"p{n}", "instruction": f"Add {n}.", "response": f"It is {n}."} | probe for n in range(3)]
            ),
        )

    def reader(self) -> Reader:
        return Reader(self.store, KEY, lambda: self.engine, lambda: ModelShape(1, 1, 1, 1, 1), self.settings)

    def rows(self) -> pl.DataFrame:
        return self.store.query("SELECT * EXCLUDE score_key FROM sample_features ORDER BY sample_id")


def _texts(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"turns": pl.String, "metadata": pl.String})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


def test_every_sample_is_read_once_wherever_it_stands(world: World) -> None:
    assert world.reader().complete_shard("a").pairs == 12
    spent = world.reader().complete_shard("b")
    assert (spent.pairs, spent.control_pairs) == (3, 0)
    rows = world.rows()
    assert rows["sample_id"].to_list() == [f"s{n:02}" for n in range(15)]
    assert rows["origin"].to_list() == ["a"] * 12 + ["b"] * 3
    forwards = world.engine.meter.forwards
    assert world.reader().complete_shard("a").tokens == 0
    assert world.engine.meter.forwards == forwards
    costs = world.store.query(
        'SELECT "work", sum(pairs)::BIGINT AS n, sum(tokens)::BIGINT AS t FROM scoring_costs GROUP BY ALL'
    )
    assert costs.row(0)[:2] == ("features", 15)
    assert costs["t"].item() == world.engine.meter.work.tokens


def test_a_run_that_ends_in_the_middle_keeps_what_it_read_and_the_next_gives_equal_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = World(tmp_path / "other")
    undisturbed.reader().complete_shard("a")
    world.reader().complete_probes()  # from here on the engine knows how it reads: no forward is a trial
    layers = world.engine.language_model.model.model
    real = layers.forward
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(layers, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        world.reader().complete_shard("a")
    kept = world.rows()
    assert 0 < kept.height < 12
    monkeypatch.undo()
    assert world.reader().complete_shard("a").pairs == 12 - kept.height
    assert world.rows().equals(undisturbed.rows())


def test_a_file_is_read_in_chunks_of_its_rows(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    undisturbed = World(tmp_path / "other")
    undisturbed.reader().complete_shard("a")
    monkeypatch.setattr("icon_assets.core.features.reader.CHUNK_ROWS", 5)
    assert world.reader().complete_shard("a").pairs == 12
    ours = world.rows()
    theirs = undisturbed.rows()
    assert ours["sample_id"].equals(theirs["sample_id"])
    assert ours["nll_sum"].to_list() == pytest.approx(theirs["nll_sum"].to_list(), abs=1e-4)


def test_a_probe_has_as_features_what_its_baseline_says(world: World) -> None:
    """The same text is the same to both: NLL and tokens of a probe without context, and of a sample with its words."""
    scorer = Scorer(world.store, KEY, lambda: world.engine, lambda: ModelShape(1, 1, 1, 1, 1), world.settings)
    scorer.complete_baseline()
    texts = world.store.query("SELECT * FROM probes ORDER BY probe_id")
    world.store.replace(
        "samples",
        _texts(
            [
                {**row, "sample_id": row["probe_id"], "shard": "b", "row": n, "n_chars": 1, "metadata": None}
                for n, row in enumerate(texts.iter_rows(named=True))
            ]
        ),
        shard="b",
    )
    world.reader().complete_shard("b")
    world.reader().complete_probes()
    both = world.store.query(
        """
        SELECT c.nll_sum AS a, s.nll_sum AS b, c.n_tokens = s.n_tokens AS same, s.embedding AS s, p.embedding AS p
        FROM control_scores c JOIN sample_features s ON s.sample_id = c.probe_id JOIN probe_features p USING (probe_id)
        """
    )
    assert both.height == 3
    assert both["same"].all()
    assert both["a"].to_list() == pytest.approx(both["b"].to_list(), abs=1e-4)
    assert all(s == pytest.approx(p, abs=1e-5) for s, p in both.select("s", "p").iter_rows())
    assert world.reader().complete_probes().tokens == 0
