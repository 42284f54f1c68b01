"""Forwards with vocabulary logits only at the wanted positions, and the NLL of targets from them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from icon_assets.core.model.batches import padded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_HEAD_ROWS = 512  # positions whose vocabulary logits exist at a time: bounds memory
_CPU_ROWS = 32  # of them in float32 at a time: few enough to stay in a CPU's cache


def placed(model: "PreTrainedModel", device: str) -> "PreTrainedModel":
    any_model: Any = model
    return any_model.to(device).eval()


def last_logits(model: "PreTrainedModel", rows: Sequence[tuple[tuple[int, ...], int]]) -> "tuple[torch.Tensor, ...]":
    """One forward over token ids, padded right.

    Args:
        rows: per row its ids, and the number of last positions at which logits are wanted.

    Returns:
        Per row [wanted positions, vocabulary], in the model's dtype.
    """
    import torch

    ids, real = padded([tokens for tokens, _ in rows])
    wanted = torch.zeros(len(ids), len(ids[0]), dtype=torch.bool)
    for row, (tokens, n) in enumerate(rows):
        assert 0 < n <= len(tokens), "a continuation longer than the model's positions"
        wanted[row, len(tokens) - n : len(tokens)] = True
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(real, device=model.device),
            logits_to_keep=wanted.to(model.device),
            use_cache=False,
        ).logits
    return logits.split([n for _, n in rows])


def nll(logits: "torch.Tensor", targets: tuple[int, ...]) -> float:
    """NLL in nats summed over `targets`, from their logits [targets, vocabulary] of any dtype."""
    import torch

    return token_nll(logits, torch.tensor(targets, dtype=torch.long, device=logits.device)).double().sum().item()


def token_nll(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """NLL in nats per row of `logits` [n, vocabulary], in float32, a few rows at a time: a row's figure is the same,
    whatever rows are beside it."""
    import torch
    from torch.nn.functional import cross_entropy

    step = _CPU_ROWS if logits.device.type == "cpu" else _HEAD_ROWS
    parts = zip(logits.split(step), targets.split(step), strict=True)
    return torch.cat([cross_entropy(rows.float(), wanted, reduction="none") for rows, wanted in parts])


def head_nll(head: Any, hidden: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """NLL as of `token_nll`, from the states [n, hidden] that `head` makes logits of; those of few rows exist at a
    time."""
    import torch

    parts = zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    return torch.cat([token_nll(head(states), wanted) for states, wanted in parts])
