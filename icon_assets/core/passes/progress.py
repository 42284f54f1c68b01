"""Progress of a pass of the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a pass: pairs (or the `unit`) and tokens of this pass, seconds since its first forward."""

    done: int
    total: int
    tokens: int
    seconds: float
    unit: str = "pairs"
