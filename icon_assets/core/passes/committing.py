"""Keeping what a pass has finished: a pass that is killed loses `commit_seconds` at most, and its cost is on record."""

import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from icon_assets.core.passes.costs import Bill, Spent
from icon_assets.core.passes.progress import Progress

T = TypeVar("T")
OnProgress = Callable[[Progress], None]


class Committing:
    """One pass, of one or several parts.

    Attributes:
        spent: what was committed so far.
    """

    def __init__(self, bill: Bill, total: int, unit: str, commit_seconds: float, on_progress: OnProgress) -> None:
        """`total`: how many the pass will finish, in `unit`."""
        self.spent = Spent()
        self._bill = bill
        self._total = total
        self._unit = unit
        self._commit_seconds = commit_seconds
        self._on_progress = on_progress
        self._done = 0
        self._start = time.monotonic()

    def keep(self, finished: Iterable[Collection[T]], commit: Callable[[list[T]], None]) -> None:
        """Take what is finished forward by forward; commit it at least every `commit_seconds`, and what is left even on
        the way out."""
        waiting = list[T]()
        try:
            for together in finished:
                waiting += together
                self._done += len(together)
                so_far = self._bill.since()
                self._report(so_far.tokens)
                if so_far.seconds >= self._commit_seconds:
                    ready = waiting
                    waiting = []  # before the commit, so that one that fails is not tried twice
                    self._commit(ready, commit)
        finally:
            if waiting:
                self._commit(waiting, commit)

    def _report(self, tokens: int) -> None:
        seconds = time.monotonic() - self._start
        self._on_progress(Progress(self._done, self._total, self.spent.tokens + tokens, seconds, self._unit))

    def _commit(self, ready: list[T], commit: Callable[[list[T]], None]) -> None:
        commit(ready)
        self.spent.add(self._bill.settle())
