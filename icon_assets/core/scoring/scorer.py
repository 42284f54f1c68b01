"""The scoring pass: finding missing pairs and controls, computing exactly those, and keeping finished work.

A pair that is stored under the same score_key is never computed again: a new probe costs one column, a new sample one
row, a new control no candidate pass.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import polars as pl

from icon_assets.core.digests import share_ceiling
from icon_assets.core.encoding.control_contexts import ControlContext
from icon_assets.core.encoding.tokens import Context, Encoded
from icon_assets.core.engine.engine import Pair, ScoringEngine
from icon_assets.core.model.flops import ModelShape
from icon_assets.core.passes.committing import Committing, OnProgress
from icon_assets.core.passes.costs import Spent, engine_bill
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.budget import Budget
from icon_assets.core.scoring.budgeted import Budgeted
from icon_assets.core.scoring.contribution import contributions
from icon_assets.core.scoring.controls import CONTROL_KEY, NO_CONTEXT, Control, controls_for, missing_controls
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
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        self._store = store
        self._key = key
        self._load = load
        self._settings = settings
        self._shape = shape
        self._ceiling = share_ceiling(settings.direct_share)
        self._budgets: dict[tuple[ControlSettings, Budget], Budgeted] = {}
        self._on_progress = on_progress

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
            return self._complete(settings, shard)
        return self._budgeted(settings, budget).complete_shard(shard, partial(self._complete, settings))

    def scores(self, shard: str, settings: ControlSettings, budget: Budget | None = None) -> pl.DataFrame:
        """Rows of the table `sample_scores` for one shard, from what is stored."""
        if budget is None:
            return contributions(self._store, self._key, shard, settings, None, self._ceiling)
        return self._budgeted(settings, budget).scores(shard)

    def _budgeted(self, settings: ControlSettings, budget: Budget) -> Budgeted:
        """The one of this budget: what its pilot teaches is learned once."""
        if (settings, budget) not in self._budgets:
            self._budgets[settings, budget] = Budgeted(
                self._store, self._key, settings, budget, self._ceiling, lambda: self._probe_tokens
            )
        return self._budgets[settings, budget]

    @cached_property
    def _probe_tokens(self) -> dict[str, int]:
        return {probe_id: p.n_input for probe_id, p in self._probes.items()}

    @cached_property
    def _probe_ids(self) -> list[str]:
        return self._store.query("SELECT probe_id FROM probes ORDER BY probe_id")["probe_id"].to_list()

    def _complete(
        self,
        settings: ControlSettings,
        shard: str | None,
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
        """Score the wanted pairs, and keep them."""
        engine = self._engine
        probes = list(self._probes.values())
        lengths = list(self._probe_tokens.values())
        engine.compile_for(sum(len(c) + sum(lengths[i] for i in w) for c, w in zip(contexts, wanted, strict=True)))
        bill = engine_bill(self._store, self._key, self._shape(), engine, work)
        total = sum(map(len, wanted))
        committing = Committing(bill, total, "pairs", self._settings.commit_seconds, self._on_progress)
        committing.keep(engine.score(contexts, probes, wanted), commit)
        return committing.spent

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
