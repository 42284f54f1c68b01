"""Forwards with vocabulary logits only at the wanted positions, and the NLL of targets from them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_LOGIT_ROWS = 256  # rows of float32 logits at a time: bounds memory


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

    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros_like(ids)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, n) in enumerate(rows):
        assert 0 < n <= len(tokens), "a continuation longer than the model's positions"
        ids[row, : len(tokens)] = torch.tensor(tokens)
        real[row, : len(tokens)] = 1
        wanted[row, len(tokens) - n : len(tokens)] = True
    with torch.no_grad():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=real.to(model.device),
            logits_to_keep=wanted.to(model.device),
            use_cache=False,
        ).logits
    return logits.split([n for _, n in rows])


def nll(logits: "torch.Tensor", targets: tuple[int, ...]) -> float:
    """NLL in nats summed over `targets`, from their logits [targets, vocabulary] of any dtype, in float32."""
    import torch
    from torch.nn.functional import cross_entropy

    wanted = torch.tensor(targets, device=logits.device)
    parts = zip(logits.split(_LOGIT_ROWS), wanted.split(_LOGIT_ROWS), strict=True)
    losses = [cross_entropy(rows.float(), ids, reduction="none") for rows, ids in parts]
    return torch.cat(losses).double().sum().item()
