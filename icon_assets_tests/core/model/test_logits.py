"""NLL in chunks of rows: the plain figure in float64, and the same bits whatever rows are beside one."""

import pytest
import torch

from icon_assets.core.model.logits import head_nll, last_logits, nll, token_nll
from icon_assets_tests.core.plain import VOCABULARY, make_model


def made(rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = 5 * torch.randn(rows, vocabulary, generator=generator)
    return logits.to(dtype), torch.randint(vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 32, 33, 700])
def test_each_row_has_the_plain_nll(rows: int, dtype: torch.dtype) -> None:
    logits, targets = made(rows, 61, dtype)
    found = token_nll(logits, targets)
    assert (found.dtype, found.shape) == (torch.float32, (rows,))
    plain = -logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=1e-5)
    assert nll(logits, tuple(targets.tolist())) == found.double().sum().item()


@pytest.mark.parametrize("vocabulary", [3, 61, 50257])
def test_the_rows_beside_one_do_not_change_its_bits(vocabulary: int) -> None:
    logits, targets = made(70, vocabulary, torch.bfloat16)
    alone = [token_nll(logits[i : i + 1], targets[i : i + 1]) for i in range(70)]
    assert torch.equal(token_nll(logits, targets), torch.cat(alone))


def test_states_through_the_head_in_parts_give_what_all_logits_give() -> None:
    head = torch.nn.Linear(16, 61)
    states, targets = made(1100, 16, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(head_nll(head, states, targets), token_nll(head(states), targets))
        assert head_nll(head, states[:0], targets[:0]).shape == (0,)


def test_the_last_logits_of_padded_rows_are_those_of_each_alone() -> None:
    model = make_model()
    rows = [((5, 6, 7, 8), 2), ((9,), 1), (tuple(range(20, 31)), 11)]
    for (ids, n), found in zip(rows, last_logits(model, rows), strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([ids])).logits[0, -n:]
        assert found.shape == (n, VOCABULARY)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
