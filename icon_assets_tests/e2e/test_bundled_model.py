"""The bundled real model: packed scores against plain forwards, and fine-tuned weights that still speak."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from icon_assets.core.engine import Pair, ScoringEngine
from icon_assets.core.ingest import discover, ingest
from icon_assets.core.language_model import LanguageModel, choose_dtype, load, load_tokenizer, prepare
from icon_assets.core.prompts import Template, render_for_scoring, render_for_training
from icon_assets.core.samples import Sample
from icon_assets.core.tokens import Encoded, encode_context, encode_probe, encode_training
from icon_assets.settings import ModelSettings
from icon_assets_tests.hostile import SPECIAL_TOKENS

DATA = Path(__file__).parents[2] / "data"
COMPILER = shutil.which("g++")  # layers are compiled only where there is one


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(ModelSettings(), tmp_path_factory.mktemp("models")).directory


def samples(name: str, rows: range) -> list[Sample]:
    found = ingest(discover(DATA / name)[0], 100_000).samples
    return [found[row].sample for row in rows]


@pytest.fixture(scope="module")
def problem(model_dir: Path) -> tuple[list[list[int]], list[Encoded]]:
    """Real candidates and probes of the shipped data: short and long ones, one-token responses among them."""
    tokenizer = load_tokenizer(model_dir)
    separator = tokenizer("\n\n\n", add_special_tokens=False).input_ids
    candidates = samples("pool/assistant_seed.jsonl", range(0, 60, 15))
    contexts = [encode_context(tokenizer, render_for_scoring(s, "alpaca"), 2040).ids for s in candidates]
    probes = [
        encode_probe(tokenizer, render_for_scoring(s, "alpaca"), 1024, 1024)
        for s in samples("probes/probes.jsonl", range(84))
    ]
    by_length = sorted(probes, key=lambda probe: len(probe.response_ids))
    return [[], *([*ids, *separator] for ids in contexts)], by_length[::10]


def packed(loaded: LanguageModel, problem: tuple[list[list[int]], list[Encoded]], compiled: bool = False) -> list[Pair]:
    contexts, probes = problem
    engine = ScoringEngine(loaded, 4096)
    assert engine.mode == "packed"
    assert engine.compile_for(10**9 if compiled else 0) == compiled
    return [p for batch in engine.score(contexts, probes, [range(len(probes))] * len(contexts)) for p in batch]


def plain(loaded: LanguageModel, problem: tuple[list[list[int]], list[Encoded]], pairs: list[Pair]) -> Iterator[float]:
    """NLL per token of each pair: one forward through the unchanged model, every logit, no packing."""
    contexts, probes = problem
    for pair in pairs:
        probe = probes[pair.probe]
        ids = [*contexts[pair.context], *probe.prompt_ids, *probe.response_ids]
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([ids])).logits[0, -len(probe.response_ids) - 1 : -1]
        yield torch.nn.functional.cross_entropy(logits.float(), torch.tensor(probe.response_ids)).item()


def test_in_float32_every_pair_equals_the_plain_forward(
    model_dir: Path, problem: tuple[list[list[int]], list[Encoded]]
) -> None:
    loaded = load(model_dir, "float32", "cpu")
    pairs = packed(loaded, problem)
    assert min(pair.n_tokens for pair in pairs) == 1
    truth = dict(zip(map(_key, pairs), plain(loaded, problem, pairs), strict=True))
    for found in [pairs, *([packed(loaded, problem, compiled=True)] if COMPILER else [])]:
        assert {_key(pair) for pair in found} == truth.keys()
        assert max(abs(pair.nll_sum / pair.n_tokens - truth[_key(pair)]) for pair in found) <= 1e-4


def _key(pair: Pair) -> tuple[int, int]:
    return pair.context, pair.probe


@pytest.mark.skipif(choose_dtype("auto", "cpu") != "bfloat16", reason="this CPU multiplies bfloat16 only by emulation")
def test_in_bfloat16_packing_costs_no_accuracy_beyond_bfloat16_itself(
    model_dir: Path, problem: tuple[list[list[int]], list[Encoded]]
) -> None:
    """The unchanged model in bfloat16 is itself up to 0.1 nats off float32 on a one-token response; ours may not be worse."""
    loaded = load(model_dir, "bfloat16", "cpu")
    pairs = packed(loaded, problem)
    exact = load(model_dir, "bfloat16", "cpu")
    exact.model.float()
    truth = dict(zip(map(_key, pairs), plain(exact, problem, pairs), strict=True))
    unpacked = plain(loaded, problem, pairs)
    theirs = [abs(a - b) for a, b in zip(unpacked, truth.values(), strict=True)]
    for found in [pairs, *([packed(loaded, problem, compiled=True)] if COMPILER else [])]:
        ours = [abs(pair.nll_sum / pair.n_tokens - truth[_key(pair)]) for pair in found]
        assert len(ours) == len(truth)
        assert sum(ours) / len(ours) <= 0.02
        assert sum(ours) <= 1.25 * sum(theirs)
        assert max(ours) <= 1.5 * max(theirs)


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_special_tokens_written_in_data_never_act_in_the_real_tokenizer(model_dir: Path, template: Template) -> None:
    tokenizer = load_tokenizer(model_dir)
    tame, hostile = Sample("say", "", "so"), Sample(SPECIAL_TOKENS, "", SPECIAL_TOKENS)
    special = set(tokenizer.all_special_ids)
    counts = []
    for sample in (tame, hostile):
        scoring, training = (
            render(sample, template, tokenizer) for render in (render_for_scoring, render_for_training)
        )
        ids = [*encode_context(tokenizer, scoring, 500).ids]
        for encoded in (encode_probe(tokenizer, scoring, 500, 500), encode_training(tokenizer, training, 500)):
            ids += [*encoded.prompt_ids, *encoded.response_ids]
        counts.append(sum(token in special for token in ids))
    assert len(special) > 2
    assert counts[0] == counts[1]
    assert special & {*tokenizer(SPECIAL_TOKENS).input_ids}, "they are special to this tokenizer"


def test_the_bundled_model_knows_something(model_dir: Path) -> None:
    loaded = load(model_dir, "float32", "cpu")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = loaded.model(ids).logits[0, -1].argmax()
    assert str(loaded.tokenizer.decode(best)).strip() == "Paris"
