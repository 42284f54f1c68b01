"""Packed scoring against a plain reference: one pair per forward through the unchanged model."""

import math
from typing import Any

import pytest
import torch

from icon_assets.core.encoding.tokens import Encoded, leading_ids
from icon_assets.core.engine.attention import Layout, NotPackable, Segment, segment_attention
from icon_assets.core.engine.engine import Meter, ScoringEngine
from icon_assets.core.errors import IconError
from icon_assets.core.model.flops import Work
from icon_assets.core.model.loading import LanguageModel
from icon_assets_tests.conftest import make_model, make_tokenizer

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "gemma": ("gemma", {}),
    "gpt_neox": ("gpt_neox", {}),
}
CONTEXTS = [[], [11, 12, 13], list(range(40, 75)), [9]]
PROBES = [
    Encoded(tuple(range(100, 112)), tuple(range(200, 209))),
    Encoded((5, 6, 7), (42,)),
    Encoded((8,), (50, 51)),
    Encoded(tuple(range(120, 140)), tuple(range(300, 303))),
]
ALL = [list(range(len(PROBES)))] * len(CONTEXTS)


def language_model(kind: str, bos: bool = False, **overrides: Any) -> LanguageModel:
    tokenizer = make_tokenizer(bos)
    return LanguageModel(make_model(kind, **overrides), tokenizer, torch.device("cpu"), leading_ids(tokenizer))


def reference(loaded: LanguageModel, context: list[int], probe: Encoded) -> float:
    """NLL of every response token, the first one too: one plain forward over one sequence."""
    prompt = [*loaded.leading, *context, *probe.prompt_ids]
    ids = torch.tensor([[*prompt, *probe.response_ids]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0].double().log_softmax(-1)
    return -sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(probe.response_ids))


@pytest.mark.parametrize("bos", [True, False], ids=["with BOS", "without BOS"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [64, 4096])
def test_packed_scores_equal_one_plain_forward_per_pair(shape: str, bos: bool, budget: int) -> None:
    kind, overrides = SHAPES[shape]
    loaded = language_model(kind, bos, **overrides)
    engine = ScoringEngine(loaded, budget)
    assert engine.mode == "packed", "this shape must not fall back"
    pairs = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    assert len(pairs) == len(CONTEXTS) * len(PROBES)
    for pair in pairs:
        probe = PROBES[pair.probe]
        assert pair.n_tokens == len(probe.response_ids)
        expected = reference(loaded, CONTEXTS[pair.context], probe)
        assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens
        assert expected > 0.5, "weights so small that any mistake would pass"


def test_a_model_that_runs_on_from_one_probe_into_the_next_is_not_packed() -> None:
    loaded = language_model("lfm2", layer_types=["conv", "full_attention"], initializer_range=0.05)
    loaded.model.bfloat16()  # in which the leak of a short convolution is smaller than what rounding does
    engine = ScoringEngine(loaded, 4096)
    assert engine.mode == "batched"
    pairs = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    for pair in pairs:
        expected = reference(loaded, CONTEXTS[pair.context], PROBES[pair.probe])
        assert abs(pair.nll_sum - expected) <= 0.1 * pair.n_tokens


def test_values_may_have_another_size_than_queries() -> None:
    layout = Layout(contexts=[(0, 5)], segments=[Segment(0, 5, 5, 9), Segment(0, 5, 9, 12)])
    query = torch.randn(1, 4, 12, 6)
    key = torch.randn(1, 2, 12, 6)
    value = torch.randn(1, 2, 12, 4)
    found = segment_attention(query, key, value, None, layout)
    assert found.shape == (1, 12, 4, 4)
    padded = segment_attention(query, key, torch.nn.functional.pad(value, (0, 2)), None, layout)
    assert torch.allclose(found, padded[..., :4], atol=1e-6)


def test_contexts_change_the_scores_so_that_the_comparison_means_something() -> None:
    loaded = language_model("llama")
    scores = {reference(loaded, context, PROBES[0]) for context in CONTEXTS}
    assert max(scores) - min(scores) > 0.1


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("mistral", {"sliding_window": 8}), ("gemma2", {"sliding_window": 8, "attn_logit_softcapping": 1.0})],
)
def test_a_model_that_cannot_be_packed_is_scored_in_padded_batches_with_the_same_figures(
    kind: str, overrides: dict[str, Any]
) -> None:
    loaded = language_model(kind, **overrides)
    engine = ScoringEngine(loaded, 4096)
    assert engine.mode == "batched"
    for batch in engine.score(CONTEXTS, PROBES, ALL):
        for pair in batch:
            expected = reference(loaded, CONTEXTS[pair.context], PROBES[pair.probe])
            assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens


def test_a_window_shorter_than_the_text_is_noticed_even_after_the_engine_was_built() -> None:
    loaded = language_model("mistral", sliding_window=32)
    engine = ScoringEngine(loaded, 4096)
    assert engine.description == "packed", "the trial pairs fit into the window"
    pairs = [pair for batch in engine.score([list(range(40, 75))], PROBES, [[0, 1]]) for pair in batch]
    for pair in pairs:
        assert abs(pair.nll_sum - reference(loaded, list(range(40, 75)), PROBES[pair.probe])) <= 1e-4 * pair.n_tokens
    assert engine.description == "packed, partly batched"
    layout: Any = type("Layout", (), {"longest": 100})()
    with pytest.raises(NotPackable):
        segment_attention(torch.zeros(1), torch.zeros(1), torch.zeros(1), None, layout, sliding_window=8)


@pytest.mark.parametrize("kind", ["qwen2_moe", "mistral"])
def test_a_window_that_only_the_mask_holds_is_seen_in_the_configuration(kind: str) -> None:
    more = {"use_sliding_window": True, "max_window_layers": 2, "num_experts": 4} if kind == "qwen2_moe" else {}
    loaded = language_model(kind, sliding_window=32, **more)
    assert_as_plain(ScoringEngine(loaded, 4096), "packed, partly batched")


def test_a_long_text_does_not_change_the_rotary_frequencies_of_others() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}
    rotary = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32, **factors}
    loaded = language_model("phi3", rope_parameters=rotary, original_max_position_embeddings=32)
    engine = ScoringEngine(loaded, 4096)
    assert_as_plain(engine, "packed, partly batched")
    groups = engine.grouped([(0, 0, 20), (0, 1, 33), (0, 2, 30), (0, 3, 33)])
    assert groups == [[(0, 0), (0, 2)], [(0, 1)], [(0, 3)]], "beyond that length each text is alone"


def assert_as_plain(engine: ScoringEngine, description: str) -> None:
    loaded = engine.language_model
    pairs = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    assert len(pairs) == 16
    for pair in pairs:
        expected = reference(loaded, CONTEXTS[pair.context], PROBES[pair.probe])
        assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens
    assert engine.description == description


def test_what_is_left_after_a_kill_is_computed_to_the_same_bit() -> None:
    engine = ScoringEngine(language_model("llama"), 150)
    assert engine.mode == "packed"
    whole = list(engine.score(CONTEXTS, PROBES, ALL))
    for done in range(1, len(whole)):
        stored = {(pair.context, pair.probe) for batch in whole[:done] for pair in batch}
        left = [[p for p in probes if (context, p) not in stored] for context, probes in enumerate(ALL)]
        assert list(engine.score(CONTEXTS, PROBES, left)) == whole[done:]


def test_every_forward_hands_its_pairs_on_so_that_slow_ones_can_be_kept() -> None:
    engine = ScoringEngine(language_model("mistral", sliding_window=8), 150)
    assert engine.mode == "batched"
    for done, _ in enumerate(engine.score(CONTEXTS, PROBES, ALL), 1):
        assert engine.meter.forwards == done
    assert engine.meter.pairs == 16


def test_only_wanted_pairs_are_scored_and_the_meter_counts_them() -> None:
    engine = ScoringEngine(language_model("llama"), 4096)
    assert engine.meter == Meter(), "the trial of the packing is not the user's work"
    pairs = [pair for batch in engine.score(CONTEXTS, PROBES, [[1], [], [0, 3], []]) for pair in batch]
    assert [(pair.context, pair.probe) for pair in pairs] == [(0, 1), (2, 0), (2, 3)]
    inputs = [p.n_input for p in PROBES]
    attended = sum(n * (n + 1) // 2 for n in (inputs[1], 35, inputs[0], inputs[3])) + 35 * (inputs[0] + inputs[3])
    scored = sum(len(PROBES[i].response_ids) for i in (1, 0, 3))
    assert engine.meter == Meter(1, 3, Work(inputs[1] + 35 + inputs[0] + inputs[3], attended, scored))


def test_the_model_has_its_own_attention_again_after_scoring() -> None:
    loaded = language_model("llama")
    own = loaded.model.config._attn_implementation
    for _ in range(2):
        list(ScoringEngine(loaded, 4096).score(CONTEXTS, PROBES, ALL))
        assert loaded.model.config._attn_implementation == own


def test_a_model_that_scales_its_logits_after_the_head_is_still_packed() -> None:
    loaded = language_model("granite", logits_scaling=4.0)
    engine = ScoringEngine(loaded, 4096)
    assert engine.mode == "packed"
    for pair in (pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch):
        expected = reference(loaded, CONTEXTS[pair.context], PROBES[pair.probe])
        assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens


def test_a_forward_that_does_not_fit_into_memory_is_halved_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = language_model("llama")
    engine = ScoringEngine(loaded, 4096)
    own = loaded.model.model.forward
    refused = []

    def small(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].numel() > 60:
            refused.append(kwargs["input_ids"].numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args, **kwargs)

    monkeypatch.setattr(loaded.model.model, "forward", small)
    pairs = [pair for batch in engine.score(CONTEXTS, PROBES, ALL) for pair in batch]
    assert sorted((p.context, p.probe) for p in pairs) == [(c, p) for c in range(4) for p in range(4)]
    assert engine.tokens_per_forward <= 60
    assert len(refused) < 8, "the smaller budget is kept for later forwards"
    for pair in pairs:
        expected = reference(loaded, CONTEXTS[pair.context], PROBES[pair.probe])
        assert abs(pair.nll_sum - expected) <= 1e-4 * pair.n_tokens


def test_a_pair_that_never_fits_into_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = language_model("llama")
    engine = ScoringEngine(loaded, 4096)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loaded.model.model, "forward", full)
    with pytest.raises(IconError, match=r"one pair of 23 tokens; lower scoring\.max_context_tokens"):
        list(engine.score([[11, 12, 13]], PROBES, [[0]]))


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_forwards_under_way_on_a_device_of_its_own_come_in_order_and_outlive_one_that_fails(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = language_model("llama")
    engine = ScoringEngine(loaded, 64)
    assert engine.ahead == 0, "a CPU has nothing to compute beside the host"
    plain = list(engine.score(CONTEXTS, PROBES, ALL))
    own = loaded.model.model.forward
    launched = [0]
    engine.ahead = ahead

    def counting(*args: Any, **kwargs: Any) -> Any:
        launched[0] += 1
        if launched[0] == len(plain):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args, **kwargs)

    assert list(engine.score(CONTEXTS, PROBES, ALL)) == plain
    monkeypatch.setattr(loaded.model.model, "forward", counting)
    monkeypatch.setattr("icon_assets.core.engine.engine.halve", lambda _: [])
    finished = []

    def score() -> None:
        for pairs in engine.score(CONTEXTS, PROBES, ALL):
            finished.append(pairs)
            assert launched[0] == min(len(finished) + ahead, len(plain))

    with pytest.raises(IconError, match="out of memory on one pair"):
        score()
    assert finished == plain[:-1]


def test_an_undefined_nll_is_refused_instead_of_stored() -> None:
    loaded = language_model("llama")
    engine = ScoringEngine(loaded, 4096)
    loaded.model.lm_head.weight.data[:] = float("inf")
    with pytest.raises(IconError, match=r"undefined NLL; set model\.dtype to float32"):
        list(engine.score(CONTEXTS, PROBES, ALL))


def test_bfloat16_stays_close_to_float32() -> None:
    exact = language_model("llama")
    coarse = language_model("llama")
    coarse.model.bfloat16()
    scores = [
        [pair for batch in ScoringEngine(loaded, 4096).score(CONTEXTS, PROBES, ALL) for pair in batch]
        for loaded in (exact, coarse)
    ]
    differences = [abs(a.nll_sum - b.nll_sum) / a.n_tokens for a, b in zip(*scores, strict=True)]
    assert 0 < sum(differences) / len(differences) < 0.05
    assert all(math.isfinite(pair.nll_sum) for pair in scores[1])
