"""How far a pass of the model is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a pass is; pairs (or what `unit` says) and tokens of this pass, seconds since its first forward."""

    done: int
    total: int
    tokens: int
    seconds: float
    unit: str = "pairs"
