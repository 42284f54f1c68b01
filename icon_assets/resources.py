"""What assets get handed: the workspace with its store, and the language model, loaded once per process."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from icon_assets.core import ledger
from icon_assets.core.budget import budget_of
from icon_assets.core.discovery import compare, on_record
from icon_assets.core.encoding import Encoder
from icon_assets.core.engine import ScoringEngine
from icon_assets.core.errors import IconError
from icon_assets.core.features import Reader
from icon_assets.core.flops import device_name, model_shape
from icon_assets.core.language_model import (
    LanguageModel,
    ModelRecord,
    choose_device,
    files_unchanged,
    load,
    load_tokenizer,
    read_record,
)
from icon_assets.core.plan import Plan, make_plan, shard_states
from icon_assets.core.preview import preview
from icon_assets.core.price import Pricer
from icon_assets.core.recipes import predicted_scores_recipe, raw_pool_recipe, sample_features_recipe
from icon_assets.core.score_key import ScoreKey, score_key
from icon_assets.core.scoring import Progress, Scorer, pool_size
from icon_assets.core.selection import needed_assets
from icon_assets.core.store import Store
from icon_assets.partitions import source_files
from icon_assets.settings import Settings, Workspace


@lru_cache(maxsize=1)
def _cached_model(directory: Path, dtype: str, device: str) -> LanguageModel:
    if not files_unchanged(read_record(directory)):
        raise IconError(
            f"{directory}: holds other files than were prepared; delete it and materialize base_model again"
        )
    return load(directory, dtype, device)


@lru_cache(maxsize=1)
def _cached_engine(directory: Path, dtype: str, device: str, tokens_per_forward: int | None) -> ScoringEngine:
    """One engine for all shards of a process: it is tried out once, and compiled once all of them together pay for it."""
    return ScoringEngine(_cached_model(directory, dtype, device), tokens_per_forward)


class WorkspaceResource(dg.ConfigurableResource):
    """One workspace. Settings are read anew in every run, so that a run uses what the file says when it starts."""

    root: str

    @property
    def workspace(self) -> Workspace:
        return Workspace.load(self.root)

    @property
    def settings(self) -> Settings:
        return self.workspace.settings

    @property
    def store(self) -> Store:
        return Store(self.workspace.store_dir)

    def base_model(self) -> tuple[ModelRecord, str]:
        """The prepared base model and its dtype, as `base_model` was last materialized.

        Raises:
            IconError: it has not been materialized yet, or its directory is gone.
        """
        event = ledger.newest(self.store, "base_model")
        if event is None:
            raise IconError("base_model: not materialized yet; materialize it first")
        directory = self.workspace.root / str(event.summary["path"])
        if not directory.is_dir():
            raise IconError(f"{directory}: the prepared model is gone; materialize base_model again")
        return read_record(directory), str(event.summary["dtype"])

    def device(self) -> str:
        return choose_device(self.settings.model.device)

    def score_key(self) -> ScoreKey:
        record, dtype = self.base_model()
        return score_key(record, dtype, self.settings.scoring)

    def plan(self) -> Plan:
        """What the next scoring run will compute and cost. The pool and the probes must be ingested."""
        workspace, store, key = self.workspace, self.store, self.score_key()
        sources, known = source_files(workspace), on_record(store)
        found = list(compare(sources, known, workspace.settings.pool.settle_seconds))
        gone = sorted(known.keys() - {source.shard for source in sources})
        ahead = preview(store, found, gone, workspace.settings.pool.max_chars)
        needed = needed_assets(self.settings.selection)
        return make_plan(ahead, found, gone, workspace, key, self._pricer(ahead, key), needed)

    def shard_states(self) -> dict[str, tuple[str, str]]:
        """Status (`new`, `stale`, `unchanged`, `removed`) and reason of every shard, by its file's size and time and by the
        record of the store: what `plan` says, without looking into files and without prices.
        """
        store, settings, known = self.store, self.settings, on_record(self.store)
        sources = source_files(self.workspace)
        states = shard_states(
            store,
            known,
            settings,
            self.score_key(),
            budget_of(settings, *pool_size(store, settings.scoring.direct_share)),
        )
        states |= dict.fromkeys(known.keys() - {source.shard for source in sources}, ("removed", ""))
        for file in compare(sources, known, settings.pool.settle_seconds):
            if file.kind == "new":
                states[file.source.shard] = ("new", "")
            elif file.kind == "changed":
                states[file.source.shard] = ("stale", "text")
        return states

    def current_shards(self, asset: str) -> Mapping[str, ledger.Event]:
        """Shards of the asset that are up to date, by the record of the store, with what made them."""
        known = {
            "raw_pool": self.ingested_shards, "sample_scores": self.scored_shards, "sample_features": self.read_shards,
            "predicted_scores": self.predicted_shards,
        }  # fmt: skip
        return known[asset]() if asset in known else {}

    def ingested_shards(self) -> dict[str, ledger.Event]:
        """Shards whose samples are those of their file as it lies there now, under the settings of now."""
        store, settings, made = self.store, self.settings.pool, ledger.latest(self.store, "raw_pool")
        current = {}
        for file in compare(source_files(self.workspace), on_record(store), 0):
            event, recipe = made.get(file.source.shard), raw_pool_recipe(file.source, file.digest, settings)
            if file.kind == "unchanged" and event is not None and event.fingerprint == recipe.fingerprint:
                current[file.source.shard] = event
        return current

    def scored_shards(self) -> dict[str, ledger.Event]:
        """Shards whose scores are up to date."""
        store, settings, made = self.store, self.settings, ledger.latest(self.store, "sample_scores")
        if not made:
            return {}
        budget = budget_of(settings, *pool_size(store, settings.scoring.direct_share))
        states = shard_states(store, made.keys() & on_record(store).keys(), settings, self.score_key(), budget)
        return {shard: made[shard] for shard, (status, _) in states.items() if status == "unchanged"}

    def read_shards(self) -> dict[str, ledger.Event]:
        """Shards whose features are up to date."""
        store, model = self.store, ledger.newest(self.store, "base_model")
        pool, made = ledger.latest(store, "raw_pool"), ledger.latest(store, "sample_features")
        if model is None or not made:
            return {}
        key = self.score_key()
        recipes = {s: sample_features_recipe(s, pool[s], model, key) for s in made.keys() & pool.keys()}
        return {
            shard: made[shard] for shard, recipe in recipes.items() if made[shard].fingerprint == recipe.fingerprint
        }

    def predicted_shards(self) -> dict[str, ledger.Event]:
        """Shards whose predictions are up to date: by a selector that learned from the scores of now."""
        store, selector = self.store, ledger.newest(self.store, "selector")
        made = ledger.latest(store, "predicted_scores")
        scored = {event.digest for event in self.scored_shards().values()} if selector else set[str]()
        if selector is None or {i.digest for i in selector.inputs if i.asset == "sample_scores"} != scored:
            return {}
        seen = self.read_shards() if self.settings.selector.kind == "light" else ledger.latest(store, "raw_pool")
        recipes = {s: predicted_scores_recipe(s, seen[s], selector) for s in made.keys() & seen.keys()}
        return {
            shard: made[shard] for shard, recipe in recipes.items() if made[shard].fingerprint == recipe.fingerprint
        }

    def _pricer(self, store: Store, key: ScoreKey) -> Pricer:
        directory = self.base_model()[0].directory
        shape, settings = model_shape(directory), self.settings.scoring
        tokenizer, device = lambda: load_tokenizer(directory), lambda: device_name(self.device())
        return Pricer(store, key, settings, shape, tokenizer, self.engine, device)

    def engine(self) -> ScoringEngine:
        """The base model's engine, the same one for everybody in this process."""
        record, dtype = self.base_model()
        return _cached_engine(record.directory, dtype, self.device(), self.settings.scoring.fixed_tokens_per_forward)

    def encoder(self) -> Encoder:
        """How texts become token ids; no weights are loaded."""
        return Encoder(load_tokenizer(self.base_model()[0].directory), self.score_key())

    def reader(self, log: Any) -> Reader:
        """What reads samples one by one, on the base model; it reports as `scorer` does."""
        directory = self.base_model()[0].directory
        shape, settings = lambda: model_shape(directory), self.settings.scoring
        return Reader(self.store, self.score_key(), self.engine, shape, settings, LogProgress(log))

    def scorer(self, log: Any) -> Scorer:
        """A scorer on the base model, whose progress goes to the run's log and to whoever listens in this process."""
        directory = self.base_model()[0].directory
        return Scorer(
            self.store,
            self.score_key(),
            self.engine,
            lambda: model_shape(directory),
            self.settings.scoring,
            LogProgress(log),
        )


class LogProgress:
    """Turns progress into a log line every few seconds, and hands each report to `listeners` (the CLI's live display)."""

    listeners: list[Any] = []  # noqa: RUF012  (one list per process on purpose)
    _every_seconds = 15.0

    def __init__(self, log: Any) -> None:
        self._log, self._said = log, 0.0

    def __call__(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener(progress)
        if progress.seconds < self._said:  # another pass has begun
            self._said = 0.0
        if progress.seconds - self._said >= self._every_seconds:
            self._said = progress.seconds
            rate = progress.tokens / progress.seconds
            left = progress.seconds * (progress.total - progress.done) / max(progress.done, 1)
            self._log.info(
                f"{progress.done:,} of {progress.total:,} {progress.unit}, {progress.done / progress.seconds:,.0f} {progress.unit}/s, "
                f"{rate:,.0f} tokens/s, about {left:,.0f} s left"
            )
