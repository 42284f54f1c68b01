"""Resources of the assets: the workspace with its store, and the language model, loaded once per process."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.errors import IconError
from icon_assets.core.features.reader import Reader
from icon_assets.core.inputs.changes import compare, on_record
from icon_assets.core.inputs.shards import source_files
from icon_assets.core.model.flops import device_name, model_shape
from icon_assets.core.model.loading import LanguageModel, choose_device, load, load_tokenizer
from icon_assets.core.model.prepare import ModelRecord, files_unchanged, read_record
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.passes.progress import Progress
from icon_assets.core.planning.estimate import Pricer
from icon_assets.core.planning.freshness import shard_states
from icon_assets.core.planning.plan import Plan, make_plan
from icon_assets.core.planning.preview import preview
from icon_assets.core.planning.recipes import Recipes
from icon_assets.core.scoring.scorer import Scorer
from icon_assets.core.selection.arm import needed_assets
from icon_assets.core.store.tables import Store
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace


@lru_cache(maxsize=1)
def _cached_model(directory: Path, dtype: str, device: str) -> LanguageModel:
    if not files_unchanged(read_record(directory)):
        raise IconError(
            f"{directory}: its files differ from those that were prepared; delete it and materialize base_model again"
        )
    return load(directory, dtype, device)


@lru_cache(maxsize=1)
def _cached_engine(directory: Path, dtype: str, device: str, tokens_per_forward: int | None) -> ScoringEngine:
    """One engine for all shards of a process. It is tested once, and compiled when all shards together justify it."""
    return ScoringEngine(_cached_model(directory, dtype, device), tokens_per_forward)


class WorkspaceResource(dg.ConfigurableResource):
    """One workspace. Settings are read again in every run, so that a run uses the file's contents at its start."""

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

    @property
    def recipes(self) -> Recipes:
        """The current recipes of all products."""
        return Recipes(self.workspace, self.store)

    def base_model(self) -> tuple[ModelRecord, str]:
        """The prepared base model and its dtype, from the last materialization of `base_model`.

        Raises:
            IconError: it has not been materialized yet, or its directory is gone.
        """
        return self.recipes.base_model()

    def device(self) -> str:
        return choose_device(self.settings.model.device)

    def score_key(self) -> ScoreKey:
        return self.recipes.key

    def plan(self) -> Plan:
        """The work and cost of the next scoring run. The pool and the probes must be ingested."""
        workspace = self.workspace
        store = self.store
        key = self.score_key()
        sources = source_files(workspace)
        known = on_record(store)
        found = list(compare(sources, known, workspace.settings.pool.settle_seconds))
        gone = sorted(known.keys() - {source.shard for source in sources})
        ahead = preview(store, found, gone, workspace.settings.pool.max_chars)
        needed = needed_assets(workspace.settings.selection)
        return make_plan(Recipes(workspace, ahead), found, gone, self._pricer(ahead, key), needed)

    def shard_states(self) -> dict[str, tuple[str, str]]:
        """Status (`new`, `stale`, `unchanged`, `removed`) and reason of every shard, by its file's size and time and by
        the record of the store, as in `plan`, but without reading files and without prices."""
        recipes = self.recipes
        known = on_record(self.store)
        sources = source_files(self.workspace)
        states = shard_states(recipes, known)
        states |= dict.fromkeys(known.keys() - {source.shard for source in sources}, ("removed", ""))
        for file in compare(sources, known, recipes.settings.pool.settle_seconds):
            if file.kind == "new":
                states[file.source.shard] = ("new", "")
            elif file.kind == "changed":
                states[file.source.shard] = ("stale", "text")
        return states

    def _pricer(self, store: Store, key: ScoreKey) -> Pricer:
        directory = self.base_model()[0].directory
        shape = model_shape(directory)
        settings = self.settings.scoring

        def tokenizer():
            return load_tokenizer(directory)

        def device():
            return device_name(self.device())

        return Pricer(store, key, settings, shape, tokenizer, self.engine, device)

    def engine(self) -> ScoringEngine:
        """The base model's engine, shared by the whole process."""
        record, dtype = self.base_model()
        return _cached_engine(record.directory, dtype, self.device(), self.settings.scoring.fixed_tokens_per_forward)

    def encoder(self) -> Encoder:
        """The encoder of texts as token ids. No weights are loaded."""
        return Encoder(load_tokenizer(self.base_model()[0].directory), self.score_key())

    def reader(self, log: Any) -> Reader:
        """A reader of samples on the base model. It reports progress as `scorer` does."""
        directory = self.base_model()[0].directory

        def shape():
            return model_shape(directory)

        settings = self.settings.scoring
        return Reader(self.store, self.score_key(), self.engine, shape, settings, LogProgress(log))

    def scorer(self, log: Any) -> Scorer:
        """A scorer on the base model, whose progress goes to the run's log and to the listeners in this process."""
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
    """Turns progress into a log line every few seconds, and hands each report to `listeners` (the CLI's live
    display)."""

    listeners: list[Any] = []  # noqa: RUF012  (one list per process on purpose)
    _every_seconds = 15.0

    def __init__(self, log: Any) -> None:
        self._log = log
        self._said = 0.0

    def __call__(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener(progress)
        if progress.seconds < self._said:  # a new pass has begun
            self._said = 0.0
        if progress.seconds - self._said >= self._every_seconds:
            self._said = progress.seconds
            rate = progress.tokens / progress.seconds
            left = progress.seconds * (progress.total - progress.done) / max(progress.done, 1)
            self._log.info(
                f"{progress.done:,} of {progress.total:,} {progress.unit}, {progress.done / progress.seconds:,.0f} "
                f"{progress.unit}/s, {rate:,.0f} tokens/s, about {left:,.0f} s left"
            )
