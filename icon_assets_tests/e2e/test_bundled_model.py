"""The bundled real model: packed scores against plain forwards, and fine-tuned weights that still speak."""

from pathlib import Path

import pytest
import torch

from icon_assets.core.encoding.prompts import Template, render_for_scoring, render_for_training
from icon_assets.core.encoding.tokens import encode_context, encode_probe, encode_training
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.model.loading import choose_dtype, load, load_tokenizer
from icon_assets.core.model.prepare import prepare
from icon_assets.settings import ModelSettings
from icon_assets_tests.accuracy import Problem, errors, packed, plain, real_problem, ways
from icon_assets_tests.hostile import SPECIAL_TOKENS


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(ModelSettings(), tmp_path_factory.mktemp("models")).directory


@pytest.fixture(scope="module")
def problem(model_dir: Path) -> Problem:
    return real_problem(model_dir)


def test_in_float32_every_pair_equals_the_plain_forward(model_dir: Path, problem: Problem) -> None:
    loaded = load(model_dir, "float32", "cpu")
    exact = plain(loaded, problem)
    assert min(map(len, exact.values())) == 1
    for kernel, compiled in ways(torch.float32):
        found = packed(loaded, problem, kernel, compiled)
        assert found.keys() == exact.keys()
        worst = max((found[pair].mean() - exact[pair].mean()).abs() for pair in exact)
        assert worst <= 1e-4, f"kernel {kernel}, compiled: {compiled}: {worst:.1e} nats per token off"


@pytest.mark.skipif(choose_dtype("auto", "cpu") != "bfloat16", reason="this CPU multiplies bfloat16 only by emulation")
def test_in_bfloat16_packing_costs_no_accuracy_beyond_bfloat16_itself(model_dir: Path, problem: Problem) -> None:
    """By every kernel, the errors of the response tokens are as large as those of the unchanged model in bfloat16.

    Tokens are compared, not means of pairs, and the largest hundredth, not the largest: in a mean, errors of either
    sign cancel by a luck that differs between CPUs, and one token of a thousand is luck, too."""
    loaded = load(model_dir, "bfloat16", "cpu")
    same_weights = load(model_dir, "bfloat16", "cpu")
    same_weights.model.float()
    exact = plain(same_weights, problem)
    theirs = errors(plain(loaded, problem), exact)
    for kernel, compiled in ways(torch.bfloat16):
        ours = errors(packed(loaded, problem, kernel, compiled), exact)
        figures = f"kernel {kernel}, compiled: {compiled}: mean {ours.mean():.4f} (plain {theirs.mean():.4f}), "
        figures += f"largest hundredth from {ours.quantile(0.99):.3f} (plain {theirs.quantile(0.99):.3f})"
        assert ours.sum() <= 1.25 * theirs.sum(), figures
        assert ours.quantile(0.99) <= 1.5 * theirs.quantile(0.99), figures


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_special_tokens_written_in_data_never_act_in_the_real_tokenizer(model_dir: Path, template: Template) -> None:
    tokenizer = load_tokenizer(model_dir)
    tame = Sample("say", "", "so")
    hostile = Sample(SPECIAL_TOKENS, "", SPECIAL_TOKENS)
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
