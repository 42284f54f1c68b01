"""Scoring within a budget: a pilot meets every probe, all others meet them rung by rung, as long as they are near the
cut (see `budget`).

A pass that is repeated asks for the same pairs: everything is derived from stored pairs and from the settings.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Protocol

import numpy as np
import polars as pl

from icon_assets.core.passes.costs import Spent
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.budget import Budget, affordable, cut, rungs, undecided
from icon_assets.core.scoring.contribution import Pilot, contributions, influences, matrix
from icon_assets.core.scoring.probe_model import ProbeModel
from icon_assets.core.scoring.score_cache import known_scores
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings


class Complete(Protocol):
    """Computes the missing pairs of a shard's samples or of the pool's (`shard` None), of all of them or of `samples`,
    with all probes or with `probes`; and their controls."""

    def __call__(
        self, shard: str | None, samples: list[str] | None = None, probes: list[str] | None = None
    ) -> Spent: ...


class Budgeted:
    """One budget over one store.

    Attributes:
        pilot: the samples that get every probe.
    """

    def __init__(
        self,
        store: Store,
        key: ScoreKey,
        settings: ControlSettings,
        budget: Budget,
        ceiling: str | None,
        probe_tokens: Callable[[], Mapping[str, int]],
    ) -> None:
        """`ceiling`: only samples whose ids are below it are scored directly; `probe_tokens`: of every probe, asked for
        once they are needed."""
        self._store = store
        self._key = key
        self._settings = settings
        self._budget = budget
        self._ceiling = ceiling
        self._load_probe_tokens = probe_tokens

    def complete_shard(self, shard: str, complete: Complete) -> Spent:
        """Compute what the budget allows of the pilot's and the shard's missing pairs."""
        spent = complete(None, samples=self.pilot)
        if len(self.pilot) < self._budget.pilot:  # that was the whole pool
            return spent
        order = self._probe_order()
        sizes = rungs(len(self._probe_tokens), self._budget.share)
        candidates: list[str] | None = None  # at first every sample of the shard
        for rung, size in enumerate(sizes):
            spent.add(complete(shard, samples=candidates, probes=order[:size]))
            if size < len(order):
                candidates = self._near_the_cut(shard, order, sizes, rung)
        return spent

    def scores(self, shard: str) -> pl.DataFrame:
        """Rows of the table `sample_scores` for one shard, from what is stored."""
        return contributions(self._store, self._key, shard, self._settings, self._taught, self._ceiling)

    @cached_property
    def pilot(self) -> list[str]:
        """A random draw from the pool that growth of the pool hardly changes."""
        return self._store.query_pool(
            """
            SELECT sample_id
            FROM (SELECT DISTINCT sample_id FROM delta.pool WHERE $ceiling IS NULL OR sample_id < $ceiling)
            ORDER BY md5($seed || sample_id) LIMIT $n
            """,
            seed=str(self._budget.seed),
            n=self._budget.pilot,
            ceiling=self._ceiling,
        )["sample_id"].to_list()

    @cached_property
    def _probe_tokens(self) -> Mapping[str, int]:
        return self._load_probe_tokens()

    @cached_property
    def _taught(self) -> Pilot:
        """What the completed pilot teaches."""
        table = influences(self._store, self._key, None, self._settings, self.pilot)
        return Pilot.learn(self.pilot, table, self._probe_tokens)

    @property
    def _pilot_influences(self) -> pl.DataFrame:
        """Of the completed pilot, under the control that decides."""
        return self._taught.influences.filter(pl.col("control") == self._budget.control)

    def _probe_order(self) -> list[str]:
        """The order in which every sample meets the probes, from the pilot: those that tell most per token come
        first."""
        _, probe_ids, x = matrix(self._pilot_influences)
        costs = np.array([self._probe_tokens[probe_id] for probe_id in probe_ids], float)
        return [probe_ids[index] for index in ProbeModel.fit(x, x).order(costs)]

    def _near_the_cut(self, shard: str, order: list[str], sizes: list[int], rung: int) -> list[str]:
        """The samples that go on to the next rung: undecided ones, as many as the budget allows."""
        budget = self._budget
        estimates = self.scores(shard).filter(pl.col("control") == budget.control)
        if estimates.is_empty():
            return []
        near = undecided(estimates, self._cut(shard, estimates), budget.critical_value(len(sizes)))
        # Tokens up to each rung; every rung computes the context again.
        tokens = [sum(self._probe_tokens[probe_id] for probe_id in order[:size]) for size in sizes]
        spent = 0
        possible = 0
        costs = {}
        for sample_id, n_probes, context in estimates.select("sample_id", "n_probes", "n_context_tokens").iter_rows():
            done = max(1, bisect_right(sizes, n_probes))
            spent += tokens[done - 1] + context * (done if n_probes < len(order) else 1)
            possible += tokens[-1] + context
            costs[sample_id] = max(0, tokens[rung + 1] - tokens[done - 1]) + context
        # The rest is spread evenly over the rungs to come (sequential halving; Karnin et al. 2013): where intervals are
        # wide, the next one would take it all.
        allowance = (round(budget.share * possible) - spent) // (len(sizes) - 1 - rung)
        return affordable(near, [costs[sample_id] for sample_id in near], allowance)

    def _cut(self, shard: str, estimates: pl.DataFrame) -> float:
        """The score that separates the top fraction of the pool, as far as it is known.

        Own estimates, the scores of other shards as they were last computed; samples that have none yet are
        represented by the pilot, which is drawn from the whole pool.
        """
        known = known_scores(self._store, self._key.value, self._budget.control, self._ceiling).elsewhere(shard)
        scored = pl.Series(known[~np.isnan(known)])
        pilot = self._pilot_influences.group_by("sample_id").agg(pl.col("x").mean())["x"]
        missing = (len(known) - scored.len()) / max(1, pilot.len())
        values = pl.concat([estimates["contribution"], scored, pilot])
        weights = pl.concat(
            [
                pl.repeat(1.0, estimates.height + scored.len(), eager=True),
                pl.repeat(missing, pilot.len(), eager=True),
            ]
        )
        return cut(values, weights, self._budget.fraction)
