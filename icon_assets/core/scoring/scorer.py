"""The scoring pass: finding missing pairs and controls, computing exactly those, and keeping finished work.

A pair that is stored under the same score_key is never computed again: a new probe costs one column, a new sample one
row, a new control no candidate pass.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import share_ceiling
from icon_assets.core.encoding.control_contexts import ControlContext
from icon_assets.core.encoding.tokens import Context, Encoded
from icon_assets.core.engine.engine import Pair, ScoringEngine
from icon_assets.core.model.flops import ModelShape
from icon_assets.core.passes.costs import Spent, engine_bill
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.passes.progress import Progress
from icon_assets.core.scoring.budget import Budget, affordable, cut, rungs, undecided
from icon_assets.core.scoring.contribution import Pilot, contributions, influences, matrix
from icon_assets.core.scoring.controls import CONTROL_KEY, NO_CONTEXT, Control, controls_for, missing_controls
from icon_assets.core.scoring.probe_model import ProbeModel
from icon_assets.core.scoring.score_cache import known_scores
from icon_assets.core.store.inventory import without_contexts
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ControlSettings, ScoringSettings

PAIR_KEY = ("score_key", "sample_id", "probe_id")


class Scorer:
    """Scores against one store with one engine, which is loaded when the first missing pair needs it."""

    def __init__(
        self,
        store: Store,
        key: ScoreKey,
        load: Callable[[], ScoringEngine],
        shape: Callable[[], ModelShape],
        settings: ScoringSettings,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._load = load
        self._settings = settings
        self._shape = shape
        self._ceiling = share_ceiling(settings.direct_share)
        self._pilots: dict[Budget, list[str]] = {}
        self._learned: dict[Budget, Pilot] = {}
        self._on_progress = on_progress or (lambda _: None)

    @cached_property
    def _engine(self) -> ScoringEngine:
        return self._load()

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._engine.language_model.tokenizer, self._key)

    @cached_property
    def _probes(self) -> "dict[str, Encoded]":
        rows = self._store.query("FROM probes ORDER BY probe_id").iter_rows(named=True)
        return {row["probe_id"]: self._encoder.probe(row) for row in rows}

    def complete_baseline(self) -> Spent:
        """Compute the probes without context that are not stored."""
        return self._complete_controls([NO_CONTEXT])

    def complete_controls(self, settings: ControlSettings) -> Spent:
        """Compute the controls that samples of the pool need and that are not stored."""
        lengths = self._store.query(
            """
            SELECT DISTINCT n_context_tokens, n_context_chars FROM contexts SEMI JOIN delta.pool USING (sample_id)
            WHERE score_key = $key ORDER BY ALL
            """,
            {"key": self._key.value},
        )
        return self._complete_controls(controls_for(self._key, settings, *lengths.get_columns()))

    def complete_shard(self, shard: str, settings: ControlSettings, budget: Budget | None = None) -> Spent:
        """Compute the missing pairs of one shard's samples, all of them or within the budget, and the missing controls
        for samples of their lengths.
        """
        if budget is None:
            return self._complete(shard, settings)
        spent = self._complete(None, settings, samples=self.pilot(budget))
        if len(self.pilot(budget)) < budget.pilot:  # this was the whole pool
            return spent
        order = self._probe_order(settings, budget)
        sizes = rungs(len(self._probe_ids), budget.share)
        candidates: list[str] | None = None  # at first every sample of the shard
        for rung, size in enumerate(sizes):
            spent.add(self._complete(shard, settings, samples=candidates, probes=order[:size]))
            if size < len(order):
                candidates = self._near_the_cut(shard, settings, budget, order, sizes, rung)
        return spent

    def scores(self, shard: str, settings: ControlSettings, budget: Budget | None = None) -> pl.DataFrame:
        """Rows of the table `sample_scores` for one shard, from what is stored."""
        pilot = self._taught(settings, budget) if budget else None
        return contributions(self._store, self._key, shard, settings, pilot, self._ceiling)

    def _near_the_cut(
        self, shard: str, settings: ControlSettings, budget: Budget, order: list[str], sizes: list[int], rung: int
    ) -> list[str]:
        """The samples for the next rung: undecided ones, as many as the budget allows."""
        scores = self.scores(shard, settings, budget)
        estimates = scores.filter(pl.col("control") == budget.control)
        if estimates.is_empty():
            return []
        near = undecided(estimates, self._cut(shard, estimates, settings, budget), budget.critical_value(len(sizes)))
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
        # The rest is spread evenly over the following rungs (sequential halving; Karnin et al. 2013). Otherwise, with
        # wide intervals, the next rung would take it all.
        allowance = (round(budget.share * possible) - spent) // (len(sizes) - 1 - rung)
        return affordable(near, [costs[sample_id] for sample_id in near], allowance)

    def _cut(self, shard: str, estimates: pl.DataFrame, settings: ControlSettings, budget: Budget) -> float:
        """The current estimate of the score that separates the top fraction of the pool.

        It uses this shard's estimates and the last computed scores of other shards. The pilot, which is drawn from the
        whole pool, represents samples without a score.
        """
        known = known_scores(self._store, self._key.value, budget.control, self._ceiling).elsewhere(shard)
        scored = pl.Series(known[~np.isnan(known)])
        pilot = self._pilot_influences(settings, budget).group_by("sample_id").agg(pl.col("x").mean())["x"]
        missing = (len(known) - scored.len()) / max(1, pilot.len())
        values = pl.concat([estimates["contribution"], scored, pilot])
        weights = pl.concat(
            [
                pl.repeat(1.0, estimates.height + scored.len(), eager=True),
                pl.repeat(missing, pilot.len(), eager=True),
            ]
        )
        return cut(values, weights, budget.fraction)

    def _probe_order(self, settings: ControlSettings, budget: Budget) -> list[str]:
        """The order of the probes for every sample, learned from the pilot: those that say most per token come
        first."""
        _, probe_ids, x = matrix(self._pilot_influences(settings, budget))
        costs = np.array([self._probe_tokens[probe_id] for probe_id in probe_ids], float)
        return [probe_ids[index] for index in ProbeModel.fit(x, x).order(costs)]

    def _pilot_influences(self, settings: ControlSettings, budget: Budget) -> pl.DataFrame:
        """The influences of the completed pilot, under the control that decides."""
        return self._taught(settings, budget).influences.filter(pl.col("control") == budget.control)

    def _taught(self, settings: ControlSettings, budget: Budget) -> Pilot:
        """The calibration from the completed pilot."""
        if budget not in self._learned:
            samples = self.pilot(budget)
            table = influences(self._store, self._key, None, settings, samples)
            self._learned[budget] = Pilot.learn(samples, table, self._probe_tokens)
        return self._learned[budget]

    @cached_property
    def _probe_tokens(self) -> dict[str, int]:
        return {probe_id: p.n_input for probe_id, p in self._probes.items()}

    def pilot(self, budget: Budget) -> list[str]:
        """The samples of the pool that get every probe: a random draw that hardly changes when the pool grows."""
        if budget not in self._pilots:
            self._pilots[budget] = self._store.query_pool(
                """
                SELECT sample_id
                FROM (SELECT DISTINCT sample_id FROM delta.pool WHERE $ceiling IS NULL OR sample_id < $ceiling)
                ORDER BY md5($seed || sample_id) LIMIT $n
                """,
                seed=str(budget.seed),
                n=budget.pilot,
                ceiling=self._ceiling,
            )["sample_id"].to_list()
        return self._pilots[budget]

    @cached_property
    def _probe_ids(self) -> list[str]:
        return self._store.query("SELECT probe_id FROM probes ORDER BY probe_id")["probe_id"].to_list()

    def _complete(
        self,
        shard: str | None,
        settings: ControlSettings,
        samples: list[str] | None = None,
        probes: list[str] | None = None,
    ) -> Spent:
        """The missing pairs of the shard's samples or the pool's, all or these, with all probes or these; and their
        controls."""
        spent = self._complete_pairs(shard, samples, probes)
        lengths = self._store.query(
            """
            SELECT DISTINCT n_context_tokens, n_context_chars FROM contexts
            SEMI JOIN (SELECT sample_id FROM delta.pool WHERE shard = $shard UNION SELECT unnest($samples::VARCHAR[]))
                USING (sample_id)
            WHERE score_key = $score_key AND ($ceiling IS NULL OR sample_id < $ceiling) ORDER BY ALL
            """,
            {"shard": shard, "samples": samples or [], "score_key": self._key.value, "ceiling": self._ceiling},
        )
        spent.add(self._complete_controls(controls_for(self._key, settings, *lengths.get_columns())))
        return spent

    def _complete_pairs(self, shard: str | None, samples: list[str] | None, probes: list[str] | None) -> Spent:
        self._complete_contexts()
        missing = self._store.query(
            sql_text("missing_pairs.sql"),
            {
                "score_key": self._key.value,
                "shard": shard,
                "samples": samples,
                "probes": probes,
                "ceiling": self._ceiling,
            },
        )
        if not missing.height:
            return Spent()
        probe_ids = list(self._probes)
        index = {probe_id: i for i, probe_id in enumerate(probe_ids)}
        rows = missing.to_dicts()
        contexts = [self._encoder.context(row) for row in rows]
        wanted = [[index[probe_id] for probe_id in row["probe_ids"]] for row in rows]

        def commit(pairs: list[Pair]) -> None:
            # Lengths first: a pair without its context's length could be neither compared with a control nor found.
            used = sorted({pair.context for pair in pairs})
            self._store.append_new("contexts", self._context_frame(rows, contexts, used), ("score_key", "sample_id"))
            origins = self._origins([rows[i]["sample_id"] for i in used])
            self._store.append_new(
                "pair_scores", self._pair_frame(rows, probe_ids, pairs).join(origins, on="sample_id"), PAIR_KEY
            )

        return self._run("pairs", [[*c.ids, *self._encoder.separator] for c in contexts], wanted, commit)

    def _complete_contexts(self) -> None:
        """Restore lengths that were removed from the store while their pairs stayed. They come from the texts, without
        a forward."""
        for origin in without_contexts(self._store, self._key.value):
            rows = self._store.query(
                """
                SELECT DISTINCT ON (sample_id) * REPLACE ($origin AS shard) FROM delta.samples
                SEMI JOIN (FROM delta.pair_scores WHERE score_key = $key AND origin = $origin) USING (sample_id)
                """,
                {"key": self._key.value, "origin": origin},
            ).to_dicts()
            contexts = [self._encoder.context(row) for row in rows]
            if rows:
                frame = self._context_frame(rows, contexts, list(range(len(rows))))
                self._store.append_new("contexts", frame, ("score_key", "sample_id"))

    def _origins(self, sample_ids: list[str]) -> pl.DataFrame:
        """The places of the pairs of these samples: the shard that each of them was first scored for."""
        return self._store.query(
            "SELECT sample_id, origin FROM contexts WHERE score_key = $key "
            "AND sample_id IN (SELECT unnest($ids::VARCHAR[]))",
            {"key": self._key.value, "ids": sample_ids},
        )

    def _complete_controls(self, wanted: Sequence[Control]) -> Spent:
        probe_ids = self._probe_ids
        needs = missing_controls(self._store, self._key, wanted, probe_ids)
        if not needs:
            return Spent()
        contexts = [self._encoder.control(*control) for control in needs]

        def commit(pairs: list[Pair]) -> None:
            self._store.append_new("control_scores", self._control_frame(contexts, probe_ids, pairs), CONTROL_KEY)

        ids = [[*c.ids, *self._encoder.separator] if c.control != "none" else [] for c in contexts]
        return self._run("controls", ids, list(needs.values()), commit)

    def _run(
        self, work: str, contexts: list[list[int]], wanted: list[list[int]], commit: Callable[[list[Pair]], None]
    ) -> Spent:
        """Score the wanted pairs. Commit at least every `commit_seconds`, and also finished pairs when interrupted."""
        engine = self._engine
        probes = list(self._probes.values())
        total = sum(map(len, wanted))
        done = 0
        spent = Spent()
        lengths = list(self._probe_tokens.values())
        engine.compile_for(sum(len(c) + sum(lengths[i] for i in w) for c, w in zip(contexts, wanted, strict=True)))
        bill = engine_bill(self._store, self._key, self._shape(), engine, work)
        waiting = list[Pair]()
        start = time.monotonic()
        try:
            for pairs in engine.score(contexts, probes, wanted):
                waiting += pairs
                done += len(pairs)
                so_far = bill.since()
                self._on_progress(Progress(done, total, spent.tokens + so_far.tokens, time.monotonic() - start))
                if so_far.seconds >= self._settings.commit_seconds:
                    ready = waiting
                    waiting = []
                    commit(ready)
                    spent.add(bill.settle())
        finally:
            if waiting:
                commit(waiting)
                spent.add(bill.settle())
        return spent

    def _pair_frame(self, rows: list[dict[str, Any]], probe_ids: list[str], pairs: list[Pair]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "score_key": [self._key.value] * len(pairs),
                "sample_id": [rows[p.context]["sample_id"] for p in pairs],
                "probe_id": [probe_ids[p.probe] for p in pairs],
                "nll_sum": [p.nll_sum for p in pairs],
                "n_tokens": [p.n_tokens for p in pairs],
            }
        )

    def _context_frame(self, rows: list[dict[str, Any]], contexts: list[Context], used: list[int]) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "score_key": [self._key.value] * len(used),
                "sample_id": [rows[i]["sample_id"] for i in used],
                "origin": [rows[i]["shard"] for i in used],
                "n_context_tokens": [len(contexts[i].ids) for i in used],
                "n_context_chars": [contexts[i].n_chars for i in used],
                "truncated": [contexts[i].truncated for i in used],
            }
        )

    def _control_frame(self, contexts: list[ControlContext], probe_ids: list[str], pairs: list[Pair]) -> pl.DataFrame:
        probes = list(self._probes.values())
        return pl.DataFrame(
            {
                "score_key": [self._key.value] * len(pairs),
                "probe_id": [probe_ids[p.probe] for p in pairs],
                "control": [contexts[p.context].control for p in pairs],
                "seed": [contexts[p.context].seed for p in pairs],
                "length": [contexts[p.context].length for p in pairs],
                "n_context_tokens": [len(contexts[p.context].ids) for p in pairs],
                "nll_sum": [p.nll_sum for p in pairs],
                "n_tokens": [p.n_tokens for p in pairs],
                "truncated": [probes[p.probe].truncated for p in pairs],
            }
        )


def pool_size(store: Store, direct_share: float) -> tuple[int, int]:
    """Unique samples of the pool that are scored directly, and probes."""
    samples = store.query_pool(
        "SELECT count(DISTINCT sample_id) FROM delta.pool WHERE $ceiling IS NULL OR sample_id < $ceiling",
        ceiling=share_ceiling(direct_share),
    ).item()
    return samples, store.query("SELECT count(*) FROM probes").item()
