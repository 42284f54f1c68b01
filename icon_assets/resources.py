"""Resources of the assets: the workspace with its store, and the language model, loaded once per process."""

from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import dagster as dg

from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.errors import IconError
from icon_assets.core.features.reader import Reader
from icon_assets.core.model.flops import model_shape
from icon_assets.core.model.loading import LanguageModel, choose_device, load, load_tokenizer
from icon_assets.core.model.prepare import ModelRecord, files_unchanged, read_record
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.passes.progress import Progress
from icon_assets.core.planning.plan import Plan, plan_pool
from icon_assets.core.planning.recipes import Recipes
from icon_assets.core.scoring.scorer import Scorer
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
    """One workspace. Dagster makes a new resource for every run, so that a run uses one state of the settings: that at
    its start."""

    root: str

    @cached_property
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
        """What the next scoring run will compute and cost. The pool and the probes must be ingested."""
        return plan_pool(self.workspace, self.store, self.engine)

    def engine(self) -> ScoringEngine:
        """The base model's engine, shared by the whole process."""
        record, dtype = self.base_model()
        return _cached_engine(record.directory, dtype, self.device(), self.settings.scoring.fixed_tokens_per_forward)

    def encoder(self) -> Encoder:
        """The encoder of texts as token ids. No weights are loaded."""
        return Encoder(load_tokenizer(self.base_model()[0].directory), self.score_key())

    def reader(self, log: Any) -> Reader:
        """What reads samples one by one, on the base model; it reports as `scorer` does."""
        shape = partial(model_shape, self.base_model()[0].directory)
        return Reader(self.store, self.score_key(), self.engine, shape, self.settings.scoring, LogProgress(log))

    def scorer(self, log: Any) -> Scorer:
        """A scorer on the base model, whose progress goes to the run's log and to whoever listens in this process."""
        shape = partial(model_shape, self.base_model()[0].directory)
        return Scorer(self.store, self.score_key(), self.engine, shape, self.settings.scoring, LogProgress(log))


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
            self._log.info(progress.line)
