"""Reading whole texts, each by itself: hidden states, and the NLL of some of the tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.model.batches import padded
from icon_assets.core.model.flops import Work

if TYPE_CHECKING:
    import torch


def read_texts(
    engine: ScoringEngine, texts: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]
) -> tuple[list["torch.Tensor"], list["torch.Tensor"]]:
    """Read whole texts in one forward, padded on the right, by the model's own attention; the engine's meter counts it.

    Args:
        texts: token ids, BOS included; scored: per text, the places of the tokens to score, from 1.

    Returns:
        Per text the last hidden states [tokens, hidden], and the NLL in nats at the scored places, float64 on the CPU.
    """
    import torch

    ids, mask = padded(texts)
    device = engine.language_model.device
    rows = torch.tensor([row for row, places in enumerate(scored) for _ in places], device=device, dtype=torch.long)
    before = torch.tensor([place - 1 for places in scored for place in places], device=device, dtype=torch.long)
    targets = torch.tensor(
        [text[place] for text, places in zip(texts, scored, strict=True) for place in places],
        device=device,
        dtype=torch.long,
    )
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": None if all(map(all, mask)) else torch.tensor(mask, device=device),
        "use_cache": False,
    }
    nll, hidden = engine.head.nll_and_states(inputs, rows, before, targets)
    lengths = [len(text) for text in texts]
    engine.meter.forwards += 1
    engine.meter.work += Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), len(targets))
    states = [hidden[row, :length] for row, length in enumerate(lengths)]
    return states, list(nll.cpu().split([len(places) for places in scored]))
