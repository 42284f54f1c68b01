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

    @property
    def line(self) -> str:
        """How far, how fast, and about how long it will take."""
        left = self.seconds * (self.total - self.done) / max(self.done, 1)
        return (
            f"{self.done:,} of {self.total:,} {self.unit}, {self.done / self.seconds:,.0f} {self.unit}/s, "
            f"{self.tokens / self.seconds:,.0f} tokens/s, about {left:,.0f} s left"
        )
