"""The held-out loss on tiny random models, checked against plain sums."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.evaluation.held_out import HeldOutSample, held_out_metrics
from icon_assets.core.evaluation.metric import Metric
from icon_assets_tests.core.plain import VOCABULARY, make_model, plain_nll


def measured(model: Any, groups: Mapping[str, Sequence[Encoded]], **more: Any) -> list[Metric]:
    """The metrics of samples by stratum, which stand one after the other in their file."""
    flat = [(stratum, sample) for stratum, samples in groups.items() for sample in samples]
    rows = [HeldOutSample(row, stratum, sample) for row, (stratum, sample) in enumerate(flat, 1)]
    return held_out_metrics(model, rows, device="cpu", **more)


def random_samples(count, seed, longest=60):
    rng = random.Random(seed)

    def ids(low):
        return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(low, longest)))

    return [Encoded(ids(1), ids(1)) for _ in range(count)]


def by_name(metrics: list[Metric]) -> dict[tuple[str, str], Metric]:
    return {(metric.task, metric.metric): metric for metric in metrics}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [1, 150, 4096])
def test_held_out_loss_equals_one_sample_at_a_time(tied, tokens_per_batch):
    model = make_model(tied)
    groups = {"qa": random_samples(13, 1), "code": random_samples(8, 2)}
    metrics = by_name(measured(model, groups, tokens_per_batch=tokens_per_batch))
    losses = {
        name: [plain_nll(model, s.prompt_ids, s.response_ids) for s in samples] for name, samples in groups.items()
    }
    every = [*losses["qa"], *losses["code"]]
    for task, parts in (
        ("held_out", every),
        ("held_out/qa", losses["qa"]),
        ("held_out/code", losses["code"]),
    ):
        tokens = [nll for part in parts for nll in part]
        assert metrics[task, "nll_per_token"].value == pytest.approx(sum(tokens) / len(tokens), abs=1e-4)


def test_each_sample_alone_equals_the_plain_loss_per_token():
    model = make_model()
    samples = random_samples(20, 3)
    metrics = by_name(measured(model, {str(i): [s] for i, s in enumerate(samples)}))
    for i, sample in enumerate(samples):
        plain = plain_nll(model, sample.prompt_ids, sample.response_ids)
        metric = metrics[f"held_out/{i}", "nll_per_token"]
        assert metric.value == pytest.approx(sum(plain) / len(plain), abs=1e-4)
        assert metric.stderr is None


def test_standard_errors_are_those_of_a_ratio_and_of_its_exponential():
    model = make_model()
    samples = random_samples(30, 4)
    loss, perplexity, *_ = measured(model, {"qa": samples})
    pairs = [(sum(part), len(part)) for part in (plain_nll(model, s.prompt_ids, s.response_ids) for s in samples)]
    total = sum(x for _, x in pairs)
    ratio = sum(y for y, _ in pairs) / total
    stderr = math.sqrt(30 / 29 * sum((y - ratio * x) ** 2 for y, x in pairs)) / total
    assert (loss.value, loss.stderr) == pytest.approx((ratio, stderr), rel=1e-4)
    expected = (math.exp(ratio), math.exp(ratio) * stderr)
    assert (perplexity.value, perplexity.stderr) == pytest.approx(expected, rel=1e-3)


def test_metrics_are_sorted_and_the_whole_and_every_stratum_have_a_perplexity():
    groups = {"b": random_samples(2, 5), "a": random_samples(2, 6)}
    metrics = measured(make_model(), groups)
    names = [(m.task, m.metric) for m in metrics]
    assert names == [
        ("held_out", "nll_per_token"),
        ("held_out", "perplexity"),
        ("held_out/a", "nll_per_token"),
        ("held_out/a", "perplexity"),
        ("held_out/b", "nll_per_token"),
        ("held_out/b", "perplexity"),
    ]
    assert names == sorted(names)


def test_a_loss_is_made_of_its_samples_which_are_named_by_their_rows():
    model = make_model()
    groups = {"a": random_samples(3, 5), "b": random_samples(2, 6)}
    metrics = by_name(measured(model, groups))
    every = [sample for group in groups.values() for sample in group]
    expected = [sum(plain_nll(model, s.prompt_ids, s.response_ids)) for s in every]
    loss = metrics["held_out", "nll_per_token"]
    assert [item.item for item in loss.items] == [1, 2, 3, 4, 5]
    assert [item.value for item in loss.items] == pytest.approx(expected, abs=1e-3)
    assert [item.weight for item in loss.items] == [len(s.response_ids) for s in every]
    assert metrics["held_out/b", "nll_per_token"].items == loss.items[3:]
    for metric in metrics.values():
        if metric.metric == "nll_per_token":
            total = sum(item.value for item in metric.items) / sum(item.weight for item in metric.items)
            assert metric.value == pytest.approx(total)
            assert metrics[metric.task, "perplexity"].value == pytest.approx(math.exp(metric.value))


def test_without_a_prompt_the_first_token_is_left_out():
    model = make_model()
    samples = [Encoded((), (5, 6, 7)), Encoded((), (9,)), Encoded((3,), (4,))]
    metric = measured(model, {"s": samples})[0]
    plain = plain_nll(model, (), (5, 6, 7)) + plain_nll(model, (3,), (4,))
    assert len(plain) == 3
    assert metric.value == pytest.approx(sum(plain) / 3, abs=1e-4)


def test_nothing_to_predict_gives_no_metrics():
    assert measured(make_model(), {}) == []
    assert measured(make_model(), {"s": [Encoded((), (9,))]}) == []


def test_a_model_in_training_mode_is_evaluated_without_dropout():
    from peft import LoraConfig, get_peft_model

    model = make_model()
    plain = measured(model, {"s": random_samples(5, 7)})
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config).train()
    with_adapter = measured(adapted, {"s": random_samples(5, 7)})  # pyright: ignore
    # A fresh adapter changes nothing.
    assert [m.value for m in with_adapter] == pytest.approx([m.value for m in plain], abs=1e-5)


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs CUDA")
def test_figures_on_cuda_equal_those_on_the_cpu():
    samples = [HeldOutSample(row, "s", sample) for row, sample in enumerate(random_samples(9, 8))]
    figures = [held_out_metrics(make_model(), samples, device=device) for device in ("cpu", "cuda")]
    for cpu, cuda in zip(*figures, strict=True):
        assert cuda.value == pytest.approx(cpu.value, rel=1e-3)
