"""When finished work is committed, and what is reported on the way."""

from collections.abc import Iterator

import pytest

from icon_assets.core.passes.committing import Committing
from icon_assets.core.passes.costs import Bill, Spent
from icon_assets.core.passes.progress import Progress


class Clocked(Bill):
    """Every look at it takes a second and ten tokens."""

    def __init__(self) -> None:
        self.looks = 0
        self.settled: list[Spent] = []

    def since(self) -> Spent:
        self.looks += 1
        return Spent(tokens=10 * self.looks, seconds=float(self.looks))

    def settle(self) -> Spent:
        spent = Spent(tokens=10 * self.looks, seconds=float(self.looks))
        self.looks = 0
        self.settled.append(spent)
        return spent


class Pass:
    """A pass of seven units whose commits and reports are written down."""

    def __init__(self, commit_seconds: float) -> None:
        self.bill = Clocked()
        self.committed: list[list[int]] = []
        self.reports: list[Progress] = []
        self.committing = Committing(self.bill, 7, "texts", commit_seconds, self.reports.append)


def test_finished_work_is_committed_in_time_and_the_rest_at_the_end() -> None:
    one = Pass(commit_seconds=2)
    one.committing.keep([[1, 2], [3], [4], [5], [6, 7]], one.committed.append)
    assert one.committed == [[1, 2, 3], [4, 5], [6, 7]]
    assert [spent.seconds for spent in one.bill.settled] == [2, 2, 1], "each commit has its cost on record"
    assert one.committing.spent == Spent(tokens=50, seconds=5)


def test_nothing_finished_is_nothing_committed() -> None:
    one = Pass(commit_seconds=2)
    one.committing.keep([], one.committed.append)
    assert (one.committed, one.bill.settled, one.committing.spent) == ([], [], Spent())


def test_what_is_finished_is_kept_when_the_pass_is_interrupted() -> None:
    one = Pass(commit_seconds=100)

    def interrupted() -> Iterator[list[int]]:
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.committing.keep(interrupted(), one.committed.append)
    assert one.committed == [[1, 2]]
    assert len(one.bill.settled) == 1


def test_a_commit_that_fails_is_not_tried_again_and_costs_nothing() -> None:
    one = Pass(commit_seconds=1)

    def refused(ready: list[int]) -> None:
        one.committed.append(ready)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        one.committing.keep([[1], [2]], refused)
    assert one.committed == [[1]]
    assert one.bill.settled == []


def test_parts_of_a_pass_are_committed_apart_and_reported_as_one() -> None:
    one = Pass(commit_seconds=100)
    for part in ([[1], [2, 3]], [[4, 5, 6], [7]]):
        one.committing.keep(part, one.committed.append)
    assert one.committed == [[1, 2, 3], [4, 5, 6, 7]]
    assert [(each.done, each.total, each.tokens) for each in one.reports] == [
        (1, 7, 10),
        (3, 7, 20),
        (6, 7, 30),
        (7, 7, 40),
    ]
    assert {each.unit for each in one.reports} == {"texts"}


def test_the_line_of_a_pass_says_how_far_how_fast_and_how_long() -> None:
    line = Progress(1000, 4000, 50_000, 20.0, "samples").line
    assert line == "1,000 of 4,000 samples, 50 samples/s, 2,500 tokens/s, about 60 s left"
