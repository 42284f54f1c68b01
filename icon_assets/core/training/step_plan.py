"""The samples of every optimizer step of a training, and their distribution over processes."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

PADDING = -1  # a sample without a target, to fill up a step


@dataclass(frozen=True)
class BatchPlan:
    """The samples of every optimizer step: a function of the seed, so that a resumed training agrees.

    Each epoch is shuffled again. Inside a step, samples are sorted by length, so that micro-batches need little
    padding. The set of samples in a step is still a random draw.
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
    """The division of a step: every process forwards the same number of micro-batches of the same size."""

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
        """Number of samples that a step has room for; free places are `PADDING`."""
        return self.size * self.per_step * self.processes

    def filled(self, step: list[int]) -> list[int]:
        return [*step, *[PADDING] * (self.places - len(step))]


class EpochSampler:
    """Hands a plan's order to a data loader, which distributes micro-batches to the processes. The trainer sets the
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
