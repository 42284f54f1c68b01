"""A training step's own kernels on a CPU against the plain ones: the same numbers, and no sample sees another."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy as plain_cross_entropy
from torch.nn.functional import scaled_dot_product_attention

from icon_assets.core.errors import IconError
from icon_assets.core.training.cpu_kernels import ATTENTION, adapter_class, cross_entropy, register, sample_attention
from icon_assets_tests.conftest import make_model

LENGTHS = (5, 1, 9)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def packed(texts: list[torch.Tensor]) -> dict[str, Any]:
    bounds = torch.tensor([0, *torch.tensor([len(text) for text in texts]).cumsum(0)])
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    return {
        "input_ids": torch.cat(texts)[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": bounds,
        "use_cache": False,
    }


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_loss_and_gradients_of_a_packed_row_are_those_of_its_samples_alone(kind: str) -> None:
    register()
    model = make_model(kind)
    texts = [torch.randint(3, 400, (length,)) for length in LENGTHS]
    alone: Any = sum(plain_cross_entropy(model(text[None]).logits[0, :-1], text[1:], reduction="sum") for text in texts)
    expected = torch.autograd.grad(alone, list(model.parameters()), allow_unused=True)
    model.set_attn_implementation(ATTENTION)
    logits = model(**packed(texts)).logits[0].split(LENGTHS)
    together: Any = sum(cross_entropy(part[:-1], text[1:]) for part, text in zip(logits, texts, strict=True))
    got = torch.autograd.grad(together, list(model.parameters()), allow_unused=True)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_no_sample_of_a_row_sees_another() -> None:
    register()
    model = make_model("llama", attn_implementation=ATTENTION)
    texts = [torch.randint(3, 400, (length,)) for length in LENGTHS]
    before = model(**packed(texts)).logits[0].split(LENGTHS)
    texts[0] = texts[0].flip(0)
    after = model(**packed(texts)).logits[0].split(LENGTHS)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_attention_over_more_than_one_block_of_queries_has_the_gradients_of_the_plain_one() -> None:
    lengths = (600, 3)
    size = 16
    query, key, value = (torch.randn(1, heads, sum(lengths), size, requires_grad=True) for heads in (4, 2, 2))
    weights = torch.randn(1, sum(lengths), 4, size)
    blocks = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=torch.block_diag(*blocks).bool(), enable_gqa=True
    )
    out, _ = sample_attention(None, query, key, value, None, cu_seq_lens_q=torch.tensor([0, 600, 603]))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    inputs = (query, key, value)
    wanted = torch.autograd.grad((expected.transpose(1, 2) * weights).sum(), inputs)
    for one, other in zip(torch.autograd.grad((out * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"sliding_window": 8}, {"s_aux": 1}, {"dropout": 0.1}])
def test_an_attention_that_cannot_be_packed_is_refused_with_the_mend(asked: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 9, 4)
    with pytest.raises(IconError, match=r"training\.packing: .* set it to false"):
        sample_attention(None, x, x, x, None, cu_seq_lens_q=torch.tensor([0, 9]), **asked)


# Adapters


def adapted(own: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.Linear(16, 40, bias=False)).to(dtype)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0", "1"], init_lora_weights=False)
    if own:
        config._register_custom_module({torch.nn.Linear: adapter_class()})
    return get_peft_model(model, config)  # pyright: ignore


def test_an_adapter_computes_what_pefts_own_does() -> None:
    ours = adapted(own=True)
    theirs = adapted(own=False)
    x = torch.randn(2, 7, 24)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for model in (ours, theirs):
        given = x.clone().requires_grad_()
        out = model(given)
        (out**2).sum().backward()
        grads = [p.grad for _, p in sorted(model.named_parameters()) if p.requires_grad]
        results.append([out, given.grad, *grads])
    assert len(results[0]) == 6
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_takes_its_share_of_the_adapters_input_and_keeps_the_mean() -> None:
    model = adapted(own=True, dropout=0.25).train()
    layer = model.base_model.model[0]
    ones = torch.ones(4000, 24)
    plain = layer.eval()(ones)[0] - layer.base_layer(ones)[0]
    dropped = layer.train()(ones) - layer.base_layer(ones)
    torch.testing.assert_close(dropped.mean(0), plain, rtol=0.1, atol=0.02)
    assert len(dropped.unique(dim=0)) > 3900
    assert torch.equal(layer.eval()(ones)[0] - layer.base_layer(ones)[0], plain)


def test_an_adapter_over_bfloat16_has_gradients_in_float32() -> None:
    model = adapted(own=True, dtype=torch.bfloat16)
    out = model(torch.randn(3, 24, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


# Cross-entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_the_plain_ones(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(150, 300)).to(dtype).requires_grad_()
    targets = torch.randint(0, 300, (150,))
    expected = plain_cross_entropy(logits.float(), targets, reduction="sum")
    got = cross_entropy(logits, targets)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    (one,), (other,) = (torch.autograd.grad(loss / 150, logits) for loss in (got, expected))
    torch.testing.assert_close(one, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


def test_the_cross_entropy_of_no_rows_is_zero_and_has_a_gradient() -> None:
    logits = torch.empty(0, 300, requires_grad=True)
    loss = cross_entropy(logits, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
