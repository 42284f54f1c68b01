"""FLOPs counted by formula against FLOPs counted by torch while the model runs."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from icon_assets.core.model.flops import (
    ModelShape,
    Work,
    context_work,
    matmul_peak,
    model_shape,
    pair_work,
    shared_work,
)
from icon_assets_tests.conftest import make_model


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_a_plain_forward_equals_torch_own_count(kind: str, tied: bool, tmp_path: Path) -> None:
    model = make_model(kind, tie_word_embeddings=tied, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(50)[None])
    # Torch counts the whole square of a causal attention, and all of the 50 positions in the head.
    work = Work(tokens=50, attended=50 * 50, scored=50)
    assert model_shape(tmp_path).flops(work) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_shared_context_costs_once_what_separate_pairs_cost_each_time() -> None:
    shape = ModelShape(1000, 2, 32, 32, 400)
    apart = pair_work(10, 5, 2) + pair_work(10, 7, 3)
    together = context_work(10) + shared_work(10, 5, 2) + shared_work(10, 7, 3)
    assert apart - together == context_work(10)
    assert shape.flops(apart) - shape.flops(together) == shape.flops(context_work(10))
    assert (apart * 2) == apart + apart


@pytest.mark.parametrize("trained", ["all", "adapter"])
def test_the_count_of_a_training_step_equals_torchs_own_count(trained: str, tmp_path: Path) -> None:
    model = make_model("llama", tie_word_embeddings=False, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    adapter = None
    if trained == "adapter":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(50)[None]).logits.sum().backward()
    work = Work(tokens=50, attended=50 * 50, scored=50)
    # What lies before the first adapter needs no gradient.
    assert model_shape(tmp_path).training_flops(work, adapter) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_peak_is_measured() -> None:
    assert matmul_peak("cpu", "float32") > 1e9


@pytest.mark.parametrize(("rate", "largest", "seconds"), [(5e11, 2048, 1.0), (2.5e8, 256, 1.0), (1e7, 256, 7.0)])
def test_a_device_that_is_slow_with_a_dtype_is_not_asked_for_large_products(
    monkeypatch: pytest.MonkeyPatch, rate: float, largest: int, seconds: float
) -> None:
    """Of so many FLOP/s; the clock is that of the products alone. 2.5e8: bfloat16 on a CPU with AVX2 only."""
    sizes = [0]
    clock = [0.0]

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        sizes.append(len(a))
        clock[0] += 2 * len(a) ** 3 / rate

    monkeypatch.setattr("torch.mm", product)
    monkeypatch.setattr("icon_assets.core.model.flops.time.perf_counter", lambda: clock[0])
    matmul_peak.cache_clear()
    assert matmul_peak("cpu", "bfloat16") == pytest.approx(rate)
    matmul_peak.cache_clear()
    assert max(sizes) == largest
    assert clock[0] < seconds
