"""Which samples every optimizer step of a training sees, and which process forwards them when."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

PADDING = -1  # stands for a sample without a target, where a step has no further one


@dataclass(frozen=True)
class BatchPlan:
    """Which samples every optimizer step sees: a function of the seed, so that a resumed training agrees.

    Each epoch is shuffled anew. Inside a step, samples stand in order of length: its micro-batches then need
    little padding, and what a step learns from stays a plain random draw.
    """

    lengths: tuple[int, ...]
    batch_size: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def n_steps(self) -> int:
        return math.ceil(self.epochs * self.steps_per_epoch)

    def epoch(self, number: int) -> list[list[int]]:
        """The steps of one epoch, each the indices of its samples."""
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}:{number}").shuffle(order)  # noqa: S311 (no secret)
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [sorted(step, key=lambda index: (-self.lengths[index], index)) for step in steps]

    def seen(self) -> Iterator[int]:
        """Indices of the samples of all steps, in order."""
        for number in range(math.ceil(self.epochs)):
            left = self.n_steps - number * self.steps_per_epoch
            for step in self.epoch(number)[: max(left, 0)]:
                yield from step


@dataclass(frozen=True)
class MicroBatches:
    """How a step is cut: every process forwards equally many micro-batches of equally many samples."""

    size: int
    per_step: int  # of one process
    processes: int

    @classmethod
    def of(cls, batch_size: int, largest: int, processes: int) -> "MicroBatches":
        share = math.ceil(batch_size / processes)
        size = next(size for size in range(min(share, largest), 0, -1) if share % size == 0)
        return cls(size, share // size, processes)

    @property
    def places(self) -> int:
        """Samples that a step has room for; what a step does not fill is `PADDING`."""
        return self.size * self.per_step * self.processes

    def filled(self, step: list[int]) -> list[int]:
        return [*step, *[PADDING] * (self.places - len(step))]


class EpochSampler:
    """Hands a plan's order to a data loader, which deals micro-batches to the processes; the trainer tells it the
    epoch."""

    def __init__(self, plan: BatchPlan, micro: MicroBatches) -> None:
        self.plan = plan
        self.micro = micro
        self.number = 0

    def set_epoch(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.micro.places

    def __iter__(self) -> Iterator[int]:
        return (index for step in self.plan.epoch(self.number) for index in self.micro.filled(step))
