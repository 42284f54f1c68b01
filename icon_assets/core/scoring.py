"""The scoring pass: which pairs and controls are missing, computing exactly those, and keeping finished work.

A pair that is stored under the same score_key is never computed again: a new probe costs one column, a new sample one
row, a new control no candidate pass.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from icon_assets.core.controls import (
    ControlContext,
    no_context,
    plain_vocabulary,
    random_chars,
    random_tokens,
)
from icon_assets.core.digests import digest
from icon_assets.core.engine import SCORING_VERSION, Pair, ScoringEngine
from icon_assets.core.language_model import LanguageModel, ModelRecord
from icon_assets.core.prompts import Rendered, render_for_scoring
from icon_assets.core.samples import Sample, Turn
from icon_assets.core.store import Store, sql_text
from icon_assets.core.tokens import Context, Encoded, encode_context, encode_probe
from icon_assets.settings import ControlSettings, ScoringSettings

PAIR_KEY = ("score_key", "sample_id", "probe_id")
CONTROL_KEY = ("score_key", "probe_id", "control", "seed", "length")


@dataclass(frozen=True)
class ScoreKey:
    """Everything that determines a pair's NLL; `value` is its digest and the key of every stored pair."""

    model_digest: str
    dtype: str
    template: str
    separator: str
    max_context_tokens: int
    max_prompt_tokens: int
    max_response_tokens: int
    scoring_version: int = SCORING_VERSION

    @cached_property
    def value(self) -> str:
        return digest(self.settings())

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def score_key(record: ModelRecord, dtype: str, settings: ScoringSettings) -> ScoreKey:
    """The key of this model under these settings. Limits that exceed the model's positions are shrunk to fit."""
    limits = (settings.max_context_tokens, settings.max_prompt_tokens, settings.max_response_tokens)
    reserve = 32  # separator and BOS
    if sum(limits) + reserve > record.max_positions:
        share = (record.max_positions - reserve) / sum(limits)
        limits = tuple(max(1, int(limit * share)) for limit in limits)
    return ScoreKey(record.digest, dtype, settings.template, settings.separator, *limits)


@dataclass(frozen=True)
class Progress:
    """How far a pass is; pairs and tokens of this pass, seconds since its first forward."""

    done: int
    total: int
    tokens: int
    seconds: float


@dataclass
class Spent:
    """What a pass computed. All zero when nothing was missing; then no model was loaded either."""

    pairs: int = 0
    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0
    packed: bool = True

    def add(self, other: "Spent") -> None:
        self.pairs += other.pairs
        self.forwards += other.forwards
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.packed = self.packed and other.packed

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Scorer:
    """Scores against one store with one model, which is loaded when the first missing pair asks for it."""

    def __init__(
        self,
        store: Store,
        key: ScoreKey,
        load: Callable[[], LanguageModel],
        settings: ScoringSettings,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._store, self._key, self._load, self._settings = store, key, load, settings
        self._on_progress = on_progress or (lambda _: None)

    @cached_property
    def _language_model(self) -> LanguageModel:
        return self._load()

    @cached_property
    def _engine(self) -> ScoringEngine:
        return ScoringEngine(self._language_model, self._settings.tokens_per_forward)

    @cached_property
    def _separator(self) -> tuple[int, ...]:
        tokenizer = self._language_model.tokenizer
        return tuple(tokenizer(self._key.separator, add_special_tokens=False, split_special_tokens=True).input_ids)

    @cached_property
    def _probes(self) -> "dict[str, Encoded]":
        rows = self._store.query("FROM probes ORDER BY probe_id").iter_rows(named=True)
        limits = self._key.max_prompt_tokens, self._key.max_response_tokens
        tokenizer = self._language_model.tokenizer
        return {row["probe_id"]: encode_probe(tokenizer, self._render(row), *limits) for row in rows}

    def complete_controls(self, settings: ControlSettings) -> Spent:
        """Compute what is missing of the probes without context and, if asked for, behind random tokens."""
        wanted: list[tuple[str, int, int]] = [("none", 0, 0)]
        if "random_tokens" in settings.kinds:
            lengths = [n for n in settings.lengths if n <= self._key.max_context_tokens]
            wanted += [("random_tokens", seed, length) for length in lengths for seed in control_seeds(settings)]
        return self._complete_controls(wanted)

    def complete_shard(self, shard: str, settings: ControlSettings) -> Spent:
        """Compute the missing pairs of one shard's samples and, if asked for, their `random_chars` controls."""
        spent = self._complete_pairs(shard)
        if "random_chars" in settings.kinds:
            lengths = self._store.query(
                """
                SELECT DISTINCT n_context_chars FROM contexts SEMI JOIN (FROM samples WHERE shard = $shard) USING (sample_id)
                WHERE score_key = $score_key ORDER BY ALL
                """,
                {"shard": shard, "score_key": self._key.value},
            )["n_context_chars"]
            seeds = control_seeds(settings)
            spent.add(self._complete_controls([("random_chars", seed, n) for n in lengths for seed in seeds]))
        return spent

    def _complete_pairs(self, shard: str) -> Spent:
        missing = self._store.query(sql_text("missing_pairs.sql"), {"score_key": self._key.value, "shard": shard})
        if not missing.height:
            return Spent()
        probe_ids = list(self._probes)
        index = {probe_id: i for i, probe_id in enumerate(probe_ids)}
        rows = missing.to_dicts()
        contexts = [self._context(row) for row in rows]
        wanted = [[index[probe_id] for probe_id in row["probe_ids"]] for row in rows]

        def commit(pairs: list[Pair]) -> None:
            # Lengths first: a pair without its context's length could not be compared with a control.
            used = sorted({pair.context for pair in pairs})
            self._store.append_new("contexts", self._context_frame(rows, contexts, used), ("score_key", "sample_id"))
            self._store.append_new("pair_scores", self._pair_frame(rows, probe_ids, pairs), PAIR_KEY)

        return self._run([[*c.ids, *self._separator] for c in contexts], wanted, commit)

    def _complete_controls(self, wanted: Sequence[tuple[str, int, int]]) -> Spent:
        probe_ids = self._store.query("SELECT probe_id FROM probes ORDER BY probe_id")["probe_id"].to_list()
        stored = set(
            self._store.query(
                "SELECT probe_id, control, seed, length FROM control_scores WHERE score_key = $score_key",
                {"score_key": self._key.value},
            ).iter_rows()
        )
        needs = {
            control: [i for i, probe_id in enumerate(probe_ids) if (probe_id, *control) not in stored]
            for control in wanted
        }
        needs = {control: probes for control, probes in needs.items() if probes}
        if not needs:
            return Spent()
        contexts = [self._control_context(*control) for control in needs]

        def commit(pairs: list[Pair]) -> None:
            self._store.append_new("control_scores", self._control_frame(contexts, probe_ids, pairs), CONTROL_KEY)

        ids = [[*c.ids, *self._separator] if c.control != "none" else [] for c in contexts]
        return self._run(ids, list(needs.values()), commit)

    def _run(self, contexts: list[list[int]], wanted: list[list[int]], commit: Callable[[list[Pair]], None]) -> Spent:
        """Score the wanted pairs; commit at least every `commit_seconds`, and what is finished even on the way out."""
        engine, probes = self._engine, list(self._probes.values())
        before = (engine.meter.pairs, engine.meter.forwards, engine.meter.tokens)
        total, waiting, start = sum(map(len, wanted)), list[Pair](), time.monotonic()
        last = start
        try:
            for pairs in engine.score(contexts, probes, wanted):
                waiting += pairs
                now = time.monotonic()
                done = engine.meter.pairs - before[0]
                self._on_progress(Progress(done, total, engine.meter.tokens - before[2], now - start))
                if now - last >= self._settings.commit_seconds:
                    ready, waiting, last = waiting, [], now
                    commit(ready)
        finally:
            if waiting:
                commit(waiting)
        meter = engine.meter
        return Spent(
            meter.pairs - before[0], meter.forwards - before[1], meter.tokens - before[2],
            time.monotonic() - start, engine.packed,
        )  # fmt: skip

    def _render(self, row: dict[str, Any]) -> Rendered:
        template: Any = self._key.template
        return render_for_scoring(sample_of(row), template, self._language_model.tokenizer)

    def _context(self, row: dict[str, Any]) -> Context:
        return encode_context(self._language_model.tokenizer, self._render(row), self._key.max_context_tokens)

    def _control_context(self, control: str, seed: int, length: int) -> ControlContext:
        tokenizer = self._language_model.tokenizer
        if control == "none":
            return no_context()
        if control == "random_tokens":
            return random_tokens(self._vocabulary, seed, length)
        return random_chars(tokenizer, seed, length, self._key.max_context_tokens)

    @cached_property
    def _vocabulary(self) -> list[int]:
        return plain_vocabulary(self._language_model.tokenizer)

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


def control_seeds(settings: ControlSettings) -> list[int]:
    """The seeds whose random contexts are averaged."""
    return [settings.seed + draw for draw in range(settings.draws)]


def sample_of(row: dict[str, Any]) -> Sample:
    """A table row with `instruction`, `input`, `response` and `turns` as a sample again."""
    turns = tuple(Turn(role, content) for role, content in json.loads(row["turns"])) if row["turns"] else ()
    return Sample(row["instruction"], row["input"], row["response"], turns)


def contributions(store: Store, key: ScoreKey, shard: str, settings: ControlSettings) -> pl.DataFrame:
    """Rows of the table `sample_scores` for one shard: contribution and side figures, one SQL query over the pairs."""
    return store.query(
        sql_text("contribution.sql"),
        {
            "score_key": key.value,
            "shard": shard,
            "controls": list(settings.kinds),
            "seeds": control_seeds(settings),
        },
    )
