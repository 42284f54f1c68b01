"""What each product is made from. Assets (which make it), the plan (which predicts it) and automation (which starts it)
share these recipes.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.evaluation.judge import judge_name
from icon_assets.core.evaluation.pairwise import answer_key
from icon_assets.core.inputs.changes import compare, keys_on_record, on_record
from icon_assets.core.inputs.evaluation_files import PROMPT_FILE, evaluation_files, probe_inputs
from icon_assets.core.inputs.source_files import SourceFile, discover, source_digest
from icon_assets.core.model.loading import choose_device, choose_dtype
from icon_assets.core.model.prepare import ModelRecord, model_files, read_record, source_revision
from icon_assets.core.passes.key import ScoreKey, score_key
from icon_assets.core.scoring.budget import Budget, budget_of
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.scoring.scorer import pool_size
from icon_assets.core.selection.arm import controls_needed, drawn_for, draws, made_with, tables_needed
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Input, Recipe
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.settings import ModelSettings, PairwiseSettings, PoolSettings, Settings
from icon_assets.workspace import Workspace

# Raise a number when a change of the code changes the product: what is stored then counts as stale.
CODE_VERSIONS: Mapping[str, str] = {
    "raw_pool": "2",
    "probe_set": "2",
    "base_model": "1",
    "probe_baseline": "1",
    "sample_scores": "2",
    "sample_features": "1",
    "probe_features": "1",
    "selector": "2",
    "predicted_scores": "1",
    "selected_subset": "2",
    "selection_trust": "2",
    "checkpoint": "3",
    "base_eval": "5",
    "eval_results": "5",
    "answers": "1",
    "pairwise_results": "1",
    "leaderboard": "5",
    "report": "2",
}
# Settings that change how results are compared or how fast they come, not the results.
_NOT_MEASURED = {"batch_size", "bootstrap_draws", "confidence", "pairwise"}


class Unready(IconError):
    """An input of a product is missing or out of date."""


# Inputs of a product that settings alone do not give: `revision` (pins the source of the base model), `dtype`, `key`
# and `budget`.
Known: TypeAlias = "Recipes | Unmade"


# The settings that each product depends on


def _keyed(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    return {"score_key": known.key.settings()}


def _scored(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    share = settings.scoring.direct_share
    budget = known.budget
    return {
        **_keyed(settings, known, part),
        "controls": settings.controls.model_dump(),
        **({"direct_share": share} if share < 1 else {}),
        **({"budget": asdict(budget)} if budget else {}),
    }


def learned_control(settings: Settings) -> str:
    """The control whose contributions the selector learns."""
    return settings.selector.control or settings.controls.primary


def _learned(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    of_other_kind = "folds" if settings.selector.kind == "lora" else "lora"
    chosen = settings.selector.model_dump(exclude={"control", "seed", of_other_kind})
    return {**chosen, "control": learned_control(settings), **_keyed(settings, known, part)}


def _chosen(settings: Settings, known: Known, arm: str) -> dict[str, Any]:
    made = made_with(arm, settings.selection)
    if PEERS in controls_needed(arm, settings.selection):
        made["peers_seed"] = settings.probes.seed
    if "budget" in made:
        made |= {"template": settings.training.template, "max_tokens": settings.training.max_tokens}
    return made


def _trusted(settings: Settings, known: Known, arm: str) -> dict[str, Any]:
    near = settings.probes.near_duplicate
    controls = settings.controls.model_dump()
    return {**_chosen(settings, known, arm), "controls": controls, "near": near}


def _drawn(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    return {**settings.probes.model_dump(), **_limit(settings)}


def _limit(settings: Settings) -> dict[str, Any]:
    """The longest sample that is read, of probes and evaluation data too. The default is left out: earlier versions
    recorded no limit there."""
    limit = settings.pool.max_chars
    return {} if limit == PoolSettings().max_chars else {"max_chars": limit}


def _measured(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    without = {*_NOT_MEASURED, *(() if settings.evaluation.target else ("target",))}  # earlier versions had none
    shown = settings.evaluation.model_dump(exclude=without, mode="json")
    trained = settings.training
    return {**shown, "template": trained.template, "max_tokens": trained.max_tokens, **_limit(settings)}


def _answered(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    pairwise = pairwise_settings(settings)
    names = [each.name for each in pairwise.prompts]
    return {"answer_key": answer_key(settings), "limit": pairwise.limit, "prompts": names, **_limit(settings)}


def _judged(settings: Settings, known: Known, part: str) -> dict[str, Any]:
    pairwise = pairwise_settings(settings)
    return {
        "judge": judge_name(pairwise.judge),
        "against": pairwise.against,
        "confidence": settings.evaluation.confidence,
    }


def pairwise_settings(settings: Settings) -> PairwiseSettings:
    """
    Raises:
        IconError: the settings ask for no such comparison any more.
    """
    if settings.evaluation.pairwise is None:
        raise IconError("evaluation.pairwise: is no longer in the settings; put it back")
    return settings.evaluation.pairwise


_SETTINGS: Mapping[str, Callable[[Settings, Known, str], dict[str, Any]]] = {
    "raw_pool": lambda settings, known, shard: {"max_chars": settings.pool.max_chars},
    "probe_set": _drawn,
    "base_model": lambda settings, known, part: {
        "name": settings.model.name,
        "revision": known.revision,
        "dtype": known.dtype,
    },
    "probe_baseline": _keyed,
    "sample_scores": _scored,
    "sample_features": _keyed,
    "probe_features": _keyed,
    "selector": _learned,
    "predicted_scores": lambda settings, known, shard: {},
    "selected_subset": _chosen,
    "selection_trust": _trusted,
    "checkpoint": lambda settings, known, run: settings.training.recipe,
    "base_eval": _measured,
    "eval_results": _measured,
    "answers": _answered,
    "pairwise_results": _judged,
    "leaderboard": lambda settings, known, part: {
        **settings.evaluation.model_dump(include={"bootstrap_draws", "confidence"}),
        "reference": settings.selection.reference,
    },
    "report": lambda settings, known, part: {
        "arms": settings.selection.arms,
        "primary": settings.controls.primary,
        "length_warning": settings.selection.length_warning,
    },
}
_SEEDS: Mapping[str, Callable[[Settings, str], int]] = {
    "probe_set": lambda settings, part: settings.probes.seed,
    "sample_scores": lambda settings, shard: settings.controls.seed,
    "selector": lambda settings, part: settings.selector.seed,
    "selected_subset": lambda settings, arm: settings.selection.seed,
    "selection_trust": lambda settings, arm: settings.probes.seed,
    "checkpoint": lambda settings, run: int(run.partition("|")[2]),
}


def _recipe(asset: str, part: str, inputs: Iterable[Input], settings: Settings, known: Known) -> Recipe:
    made = _SETTINGS[asset](settings, known, part)
    seed = _SEEDS.get(asset)
    return Recipe(asset, part, tuple(inputs), made, seed(settings, part) if seed else None, CODE_VERSIONS[asset])


@dataclass(frozen=True)
class Unmade:
    """The inputs as far as settings alone give them, before anything is made. This is enough to see that a setting of a
    product has changed."""

    settings: Settings

    @property
    def revision(self) -> str:
        return self.settings.model.revision or ""

    @property
    def dtype(self) -> str:
        return f"{self.settings.model.dtype} on {self.settings.model.device}"

    @property
    def key(self) -> ScoreKey:
        record = ModelRecord("", "", Path(), "", 0, 0, 0, 0, max_positions=1 << 62)
        return score_key(record, self.dtype, self.settings.scoring)

    @property
    def budget(self) -> Budget | None:
        """The budget for a pool that is large enough to have one."""
        return budget_of(self.settings, 1 << 40, 1)


def settings_digest(asset: str, parts: Iterable[str], settings: Settings) -> str:
    """Digest of everything in the settings that these partitions of an asset depend on."""
    known = Unmade(settings)
    own = [_recipe(asset, part, (), settings, known) for part in parts]
    return digest([[recipe.settings, recipe.seed] for recipe in own])


# What each product is made from


def made_by(asset: str) -> tuple[str, ...]:
    """The dimensions of an asset's partitions, such as `arm` and `seed`. Empty for an asset without partitions."""
    return tuple(inspect.signature(getattr(Inputs, asset)).parameters)[1:]


class Inputs:
    """The current inputs of each product: one method per asset, with one argument per dimension of its partitions.

    Every method raises `Unready` where an input is missing or out of date.
    """

    def __init__(self, recipes: "Recipes") -> None:
        self._recipes = recipes
        self._settings = recipes.settings

    def _one(self, asset: str, part: str = "") -> Input:
        return self._recipes.needed(asset, part).as_input()

    def _every(self, asset: str) -> list[Input]:
        return [event.as_input() for event in self._recipes.every_shard(asset)]

    def _files(self, kind: str | None = None) -> list[Input]:
        """The evaluation data, or the prompts, with the digests of their content."""
        digest_of = self._recipes.digest_of
        files = (each for each in evaluation_files(self._recipes.workspace) if (each[0] == PROMPT_FILE) == bool(kind))
        return [Input(each, name, digest_of(SourceFile(name, name, path))) for each, name, path in files]

    def raw_pool(self, shard: str) -> list[Input]:
        return [self._recipes.file_on_record(shard)]

    def probe_set(self) -> list[Input]:
        digest_of = self._recipes.digest_of
        pool = self._recipes.pool
        files = [Input(kind, each.file, digest_of(each)) for kind, each in probe_inputs(self._recipes.workspace)]
        return [*files, *(event.as_input() for event in pool.values())]

    def base_model(self) -> list[Input]:
        return []

    def probe_baseline(self) -> list[Input]:
        return [self._one("probe_set"), self._one("base_model")]

    def sample_scores(self, shard: str) -> list[Input]:
        common = ("probe_set", "base_model", "probe_baseline")
        return [self._one("raw_pool", shard), *(self._one(asset) for asset in common)]

    def sample_features(self, shard: str) -> list[Input]:
        return [self._one("raw_pool", shard), self._one("base_model")]

    def probe_features(self) -> list[Input]:
        return [self._one("probe_set"), self._one("base_model")]

    def selector(self) -> list[Input]:
        """The light selector learns from features too."""
        seen = self._every("sample_features") if self._settings.selector.kind == "light" else []
        return [*self._every("sample_scores"), *seen, self._one("base_model")]

    def predicted_scores(self, shard: str) -> list[Input]:
        seen = "sample_features" if self._settings.selector.kind == "light" else "raw_pool"
        return [self._one(seen, shard), self._one("selector")]

    def selected_subset(self, arm: str) -> list[Input]:
        """Everything that the arm chooses by, for the whole pool."""
        tables = ["sample_scores", *sorted(tables_needed(arm, self._settings.selection))]
        of_shards = {table: "shard" in made_by(table) for table in tables}
        return [each for table in tables for each in (self._every(table) if of_shards[table] else [self._one(table)])]

    def selection_trust(self, arm: str) -> list[Input]:
        """The subsets of all arms of the settings, and the inputs of this arm's choice."""
        self._one("selected_subset", arm)
        chosen = self._recipes.made("selected_subset")
        others = [chosen[name] for name in chosen if name in self._settings.selection.arms]
        return [*(event.as_input() for event in others), *self.selected_subset(arm)]

    def checkpoint(self, arm: str, seed: str) -> list[Input]:
        subset = drawn_for(arm, self._settings.training.seeds, int(seed))
        return [self._one("selected_subset", subset), self._one("base_model")]

    def base_eval(self) -> list[Input]:
        return [self._one("base_model"), *self._files()]

    def eval_results(self, arm: str, seed: str) -> list[Input]:
        return [self._one("checkpoint", f"{arm}|{seed}"), *self._files()]

    def answers(self, arm: str, seed: str) -> list[Input]:
        return [self._one("checkpoint", f"{arm}|{seed}"), *self._files(PROMPT_FILE)]

    def pairwise_results(self, arm: str, seed: str) -> list[Input]:
        against = pairwise_settings(self._settings).against
        return [self._one("answers", f"{arm}|{seed}"), self._one("answers", f"{against}|{seed}")]

    def leaderboard(self) -> list[Input]:
        """The results, and which of them count. That also depends on results of other scores and recipes."""
        measured = [*self._recipes.made("eval_results").values(), *self._recipes.made("base_eval").values()]
        counted = self._recipes.store.query("FROM delta.results_now").item()
        return [*(event.as_input() for event in measured), Input("results", "", str(counted))]

    def report(self) -> list[Input]:
        """Every recorded product that the page shows. Equal products give the same page."""
        rows = self._recipes.store.query(sql_text("report/products.sql")).sort("asset", "partition")
        return [Input(row["asset"], row["partition"], row["digest"]) for row in rows.iter_rows(named=True)]


class Recipes:
    """The current recipes of a workspace. Everything read is cached, so make a new object to see later changes.

    Args:
        store: the workspace's store, or a preview of it.
        digest_of: digest of a file that a product is made from.
        dtype: of the base model, where it is already chosen.
    """

    def __init__(
        self,
        workspace: Workspace,
        store: Store,
        digest_of: Callable[[SourceFile], str] = source_digest,
        dtype: str | None = None,
    ) -> None:
        self.workspace = workspace
        self.store = store
        self.digest_of = digest_of
        self.settings = workspace.settings
        self._dtype = dtype
        self._made: dict[str, dict[str, Event]] = {}
        self._current: dict[str, Mapping[str, Event]] = {}

    def of(self, asset: str, part: str = "") -> Recipe:
        """The recipe by which a partition of an asset would be made now; of `selected_subset` also a draw of an arm.

        Raises:
            Unready: something it is made from is missing or out of date.
            IconError: a file it is made from is missing, or the settings are wrong.
        """
        inputs = getattr(Inputs(self), asset)(*(part.split("|") if part else ()))
        return _recipe(asset, part, inputs, self.settings, self)

    def all_of(self, asset: str, part: str = "") -> list[Recipe]:
        """The recipes of everything that is made for a partition: of an arm's subset also those of its draws."""
        drawn = draws(part, self.settings.training.seeds) if asset == "selected_subset" else [part]
        return [self.of(asset, name) for name in drawn]

    def outdated(self, asset: str, part: str) -> str:
        """Digest of the recipes by which a partition has to be made again, including its draws. '' where it is up to
        date or waits for an input."""
        try:
            if asset == "report":  # made once, when all is scored, not after every shard
                self.every_shard("sample_scores")
            recipes = self.all_of(asset, part)
        except Unready:
            return ""
        except IconError as error:  # its run will report it
            return digest(str(error))
        made = self.made(asset)
        other = [each.fingerprint for each in recipes if not _is_by(made.get(each.partition), each)]
        return digest(other) if other else ""

    def current(self, asset: str) -> Mapping[str, Event]:
        """The partitions of an asset that are up to date, with their events. For an asset by shard, only shards in the
        pool."""
        if asset not in self._current:
            self._current[asset] = dict(self._find_current(asset))
        return self._current[asset]

    def _find_current(self, asset: str) -> Iterator[tuple[str, Event]]:
        unread = self._changed_files() if asset == "raw_pool" else set[str]()
        if asset == "predicted_scores" and not self._selector_is_by_these_scores():
            return
        for part, event in self.made(asset).items():
            if part in unread or ("shard" in made_by(asset) and part not in self._on_record):
                continue
            try:
                if _is_by(event, self.of(asset, part)):
                    yield part, event
            except Unready:
                continue

    def _changed_files(self) -> set[str]:
        """Shards whose file differs from its record in size or time."""
        folder = self.workspace.input_path(self.settings.pool.path)
        sources = discover(folder, on_record=keys_on_record(self.store))
        as_recorded = {file.source.shard for file in compare(sources, self._on_record, 0) if file.kind == "unchanged"}
        return self._on_record.keys() - as_recorded

    def _selector_is_by_these_scores(self) -> bool:
        selector = self.made("selector").get("")
        scored = {event.digest for event in self.current("sample_scores").values()}
        return selector is not None and {i.digest for i in selector.inputs if i.asset == "sample_scores"} == scored

    def every_shard(self, asset: str) -> list[Event]:
        """The newest event of every shard of the pool. A product made from only a part would favour the first shards,
        and scores by different probes or models can't be compared in one ranking.

        Raises:
            Unready: some shards have none, or an outdated one.
        """
        current = self.current(asset)
        if (missing := self.pool.keys() - current.keys()) or not self.pool:
            raise Unready(
                f"{asset}: {len(missing)} of {len(self.pool)} shards are not made yet, or not for the current text, "
                f"probes, model and settings ({', '.join(sorted(missing)[:3])}); materialize them first"
            )
        return [current[shard] for shard in sorted(self.pool)]

    def needed(self, asset: str, part: str = "") -> Event:
        """The newest event of something upstream.

        Raises:
            Unready: it has never been materialized.
        """
        event = self.made(asset).get(part)
        if event is None:
            where = f" [{part}]" if part else ""
            raise Unready(f"{asset}{where}: not materialized yet; materialize it first")
        return event

    def made(self, asset: str) -> dict[str, Event]:
        """The newest event of each partition of an asset."""
        if asset not in self._made:
            self._made[asset] = ledger.latest(self.store, asset)
        return self._made[asset]

    @cached_property
    def pool(self) -> dict[str, Event]:
        """The newest event of `raw_pool` for every shard that is in the pool."""
        return {shard: event for shard, event in self.made("raw_pool").items() if shard in self._on_record}

    @cached_property
    def _on_record(self) -> Mapping[str, Any]:
        return on_record(self.store)

    @cached_property
    def _files(self) -> dict[str, Input]:
        rows = self.store.query("SELECT shard, file, digest FROM shards")
        return {shard: Input("file", file, content) for shard, file, content in rows.iter_rows()}

    def file_on_record(self, shard: str) -> Input:
        """The file of a shard as it was last read.

        Raises:
            Unready: it never was.
        """
        if shard not in self._files:
            raise Unready(f"raw_pool [{shard}]: not materialized yet; materialize it first")
        return self._files[shard]

    def base_model(self) -> tuple[ModelRecord, str]:
        """The prepared base model and its dtype, from the last materialization of `base_model`.

        Raises:
            Unready: it has not been materialized yet, or its directory is gone.
        """
        event = self.needed("base_model")
        directory = self.workspace.root / str(event.summary["path"])
        if not directory.is_dir():
            raise Unready(f"{directory}: the prepared model is gone; materialize base_model again")
        return read_record(directory), str(event.summary["dtype"])

    @cached_property
    def key(self) -> ScoreKey:
        """The key of scores by the base model as last prepared."""
        return score_key(*self.base_model(), self.settings.scoring)

    @cached_property
    def budget(self) -> Budget | None:
        """The budget for the current pool and probes."""
        return budget_of(self.settings, *pool_size(self.store, self.settings.scoring.direct_share))

    @cached_property
    def revision(self) -> str:
        return _revision_at(self.settings.model.name, self.settings.model.revision, model_files(self.settings.model))

    @cached_property
    def dtype(self) -> str:
        """`auto` is resolved only when the settings changed since the model was prepared, because that loads torch."""
        wanted = self.settings.model
        event = self.made("base_model").get("")
        if self._dtype or wanted.dtype != "auto":
            return self._dtype or wanted.dtype
        if event is not None and event.summary.get("asked") == asked_of_hardware(wanted):
            return str(event.summary["dtype"])
        return choose_dtype(wanted.dtype, choose_device(wanted.device))


def asked_of_hardware(settings: ModelSettings) -> str:
    """The settings that determine device and dtype, to be stored with the choice."""
    return f"{settings.dtype} on {settings.device}"


@lru_cache(maxsize=4)
def _revision_at(name: str, revision: str | None, files: tuple[tuple[str, int, int], ...]) -> str:
    """Weights are read again only when the size or time of one of their files changed."""
    return source_revision(ModelSettings(name=name, revision=revision))


def _is_by(event: Event | None, recipe: Recipe) -> bool:
    return event is not None and event.fingerprint == recipe.fingerprint


def raw_pool_recipe(source: SourceFile, digest: str, settings: Settings) -> Recipe:
    """The samples of one source file with this content, which may not be recorded yet."""
    return _recipe("raw_pool", source.shard, [Input("file", source.file, digest)], settings, Unmade(settings))
