"""What makes a product stale: every setting is set otherwise, and what follows is what the recipes of each product
say."""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import icon_assets
from icon_assets.core.digests import canonical_json, digest
from icon_assets.core.inputs.ingest import Ingested, shard_row
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.planning import recipes as recipes_module
from icon_assets.core.planning.recipes import CODE_VERSIONS, Recipes, Unready, settings_digest
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace
from icon_assets_tests.furnished import (
    PLAIN_KEYS,
    RICH,
    SECOND,
    TARGET_KEYS,
    every_product,
    every_setting,
    flipped,
    furnish,
)

Product = tuple[str, str]
WORLDS = {"rich": RICH, "plain": flipped(RICH, PLAIN_KEYS), "target": flipped(RICH, TARGET_KEYS)}
# Made by the assets themselves when each still had a recipe of its own. A code version that is raised on purpose
# changes what it names: take those digests from the failing test.
BEFORE = json.loads((Path(__file__).parent / "recipes_before.json").read_text())
FOR_TARGETS = ("selection.aggregate", "selection.turns", "selection.combined.", "evaluation.target.")
CASES = {
    "rich": [name for name in SECOND if not name.startswith(FOR_TARGETS)],
    "plain": [
        name
        for name in SECOND
        if name.startswith(("probes.", "selector.", "selection.")) and not name.startswith(FOR_TARGETS)
    ],
    "target": [name for name in SECOND if name.startswith(FOR_TARGETS)],
}


class Record:
    """A workspace of which everything is on record by the recipes of its settings, the ledger in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Remembered(furnish(root).store_dir, {})
        self.events = {name: dict(self._events(values)) for name, values in WORLDS.items()}

    def workspace(self, values: Mapping[str, Any]) -> Workspace:
        return Workspace(self.root, Settings(**values))

    def _events(self, values: Mapping[str, Any]) -> Iterator[tuple[Product, Event]]:
        workspace = self.workspace(values)
        blank = {product: _blank(product) for product in every_product(workspace)}
        recipes = AllCurrent(workspace, self.store, blank)
        for product, event in blank.items():
            yield product, _made_by(event, recipes.of(*product))


def _blank(product: Product) -> Event:
    summary = {"path": "models/m", "dtype": "float32"} if product[0] == "base_model" else {}
    return Event(*product, digest(list(product)), "", summary)


def _made_by(event: Event, recipe: Recipe) -> Event:
    """Made again, and come out as it was."""
    settings = json.loads(canonical_json(dict(recipe.settings)))
    return replace(
        event,
        fingerprint=recipe.fingerprint,
        inputs=recipe.inputs,
        settings=settings,
        code_version=recipe.code_version,
    )


class Remembered(Store):
    """The ledger of these tests is not in the store: what it is asked never changes."""

    def __init__(self, root: Path, answers: dict[str, pl.DataFrame]) -> None:
        super().__init__(root)
        object.__setattr__(self, "answers", answers)

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        name = f"{sql} {parameters}"
        if name not in self.answers:  # pyright: ignore
            self.answers[name] = super().query(sql, parameters)  # pyright: ignore
        return self.answers[name]  # pyright: ignore


class OnRecord(Recipes):
    """With a ledger of these events."""

    def __init__(self, workspace: Workspace, store: Store, events: Mapping[Product, Event]) -> None:
        super().__init__(workspace, store)
        self.events = events

    def made(self, asset: str) -> dict[str, Event]:
        return {part: event for (name, part), event in self.events.items() if name == asset}


class AllCurrent(OnRecord):
    """With inputs that count as up to date, whatever they were made by."""

    def current(self, asset: str) -> Mapping[str, Event]:
        return self.made(asset)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return Record(tmp_path_factory.mktemp("record"))


def test_every_setting_has_a_second_value_that_is_valid_and_another_one() -> None:
    assert sorted(every_setting()) == sorted(SECOND)
    shown = Settings(**WORLDS["target"]).model_dump(mode="json")
    assert {name for name in _leaves(shown) if not name.startswith("evaluation.pairwise.judge.options.")} <= {
        *SECOND,
        "evaluation.pairwise.judge.options",
    }
    for name, keys in SECOND.items():
        if name == "ui.token":  # a secret is not shown
            continue
        other = Settings(**flipped(WORLDS["target"], keys)).model_dump(mode="json")
        assert _at(other, name) != _at(shown, name), name


def _leaves(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name


def _at(value: Any, name: str) -> Any:
    for key in name.split("."):
        value = [each[key] for each in value] if isinstance(value, list) else value[key]
    return value


@pytest.mark.parametrize("world", BEFORE)
def test_every_recipe_is_the_one_of_the_version_before_whatever_the_settings(record: Record, world: str) -> None:
    base = BEFORE[world]["base"]
    assert {asset: value for asset, value in _digests(record, world, {}).items() if asset in base} == base
    for name in CASES[world]:
        now = _digests(record, world, SECOND[name])
        other = {asset: now[asset] for asset in base if now[asset] != base[asset]}
        assert other == BEFORE[world]["flips"].get(name, {}), name


def _digests(record: Record, world: str, keys: Mapping[str, Any]) -> dict[str, str]:
    """Of each asset one digest of the recipes of all its partitions that can be made at once."""
    workspace = record.workspace(flipped(WORLDS[world], keys))
    recipes = AllCurrent(workspace, record.store, record.events[world])
    found = dict[str, list[Any]]()
    for asset, part in every_product(workspace):
        try:
            found.setdefault(asset, []).append([part, recipes.of(asset, part).fingerprint])
        except Unready:
            continue
    return {asset: digest(sorted(each))[:16] for asset, each in found.items()}


def test_settings_for_targets_make_only_their_own_products_stale(record: Record) -> None:
    expected = {
        "selection.aggregate": {"icon", "rico", "rico_chars", "icon_peers", "length_matched"},
        "selection.turns": {"rds", "bm25", "icon_in_turn", "combined"},
        "selection.combined.rankings": {"combined"},
        "selection.combined.ifd_below": {"combined"},
    }
    for name, arms in expected.items():
        workspace = record.workspace(flipped(WORLDS["target"], SECOND[name]))
        stale = _stale(record, "target", workspace)
        assert {part for asset, part in stale if asset == "selected_subset"} == arms, name
    for name in ("evaluation.target.samples", "evaluation.target.choices"):
        stale = _stale(record, "target", record.workspace(flipped(WORLDS["target"], SECOND[name])))
        assert {"probe_set", "eval_results", "base_eval"} <= {asset for asset, _ in stale}, "kept apart, and measured"
        assert "selected_subset" not in {asset for asset, _ in stale}, name


@pytest.mark.parametrize("world", WORLDS)
def test_what_a_setting_makes_stale_is_started_once_each_and_nothing_else(record: Record, world: str) -> None:
    for name in CASES[world]:
        workspace = record.workspace(flipped(WORLDS[world], SECOND[name]))
        assert sorted(_started(record, world, workspace)) == sorted(_stale(record, world, workspace)), name


def _stale(record: Record, world: str, workspace: Workspace) -> set[Product]:
    """What has another recipe, once all is made, than it was made by; draws of an arm with the arm."""
    events = {product: _blank(product) for product in every_product(workspace)} | record.events[world]
    recipes = AllCurrent(workspace, record.store, events)
    found = set[Product]()
    for asset, part in every_product(workspace):
        if recipes.of(asset, part).fingerprint != events[asset, part].fingerprint:
            found.add((asset, part.split(".")[0] if asset == "selected_subset" else part))
    return found


def _started(record: Record, world: str, workspace: Workspace) -> list[Product]:
    """What is started tick by tick, if everything that is made comes out as it was."""
    events = dict(record.events[world])
    started = []
    products = [
        product for product in every_product(workspace) if product[0] != "selected_subset" or "." not in product[1]
    ]
    while True:
        recipes = OnRecord(workspace, record.store, dict(events))
        asked = [product for product in products if recipes.outdated(*product)]
        if not asked:
            return started
        assert len(started) < 1000, "it never ends"
        started += asked
        for asset, part in asked:
            for recipe in recipes.all_of(asset, part):
                product = (asset, recipe.partition)
                events[product] = _made_by(events.get(product) or _blank(product), recipe)


def test_a_pool_that_outgrows_its_budget_makes_every_shard_stale(tmp_path: Path) -> None:
    root = tmp_path
    values = flipped(RICH, {"probes.budget": "auto", "probes.exact_pairs": 30})
    store = Store(furnish(root, values).store_dir)
    workspace = Workspace.load(root)
    exact = Recipes(workspace, store)
    shards = list(exact.pool)
    assert exact.budget is None, "24 pairs"
    _add_samples(store, 4)
    assert Recipes(workspace, store).budget is not None, "40 pairs"
    assert _other_recipes(exact, Recipes(workspace, store)) == shards
    small = Recipes(workspace, store)
    assert small.budget is not None
    _add_samples(store, 2400)
    large = Recipes(workspace, store)
    assert large.budget is not None
    assert (small.budget.pilot, large.budget.pilot) == (24, 48)
    assert _other_recipes(small, large) == shards


def _other_recipes(before: Recipes, after: Recipes) -> list[str]:
    return [s for s in before.pool if before.of("sample_scores", s).settings != after.of("sample_scores", s).settings]


def _add_samples(store: Store, n: int) -> None:
    rows = [{"shard": "more", "file": "more.jsonl", "row": i, "sample_id": f"{i:032x}", "n_chars": 1} for i in range(n)]
    text = {"instruction": "x", "input": "", "response": "x", "turns": None, "metadata": None}
    frame = pl.DataFrame(
        [{**row, **text} for row in rows], schema_overrides={"turns": pl.String, "metadata": pl.String}
    )
    store.replace("samples", frame, shard="more")
    store.replace("shards", shard_row(SourceFile("more", "more.jsonl", Path()), Ingested("d", 1, 1)), shard="more")


def test_nobody_else_writes_the_recipe_of_a_product() -> None:
    """Notes on the store itself, which is no product, are written where they are made."""
    package = Path(icon_assets.__file__).parent
    writers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == Recipe.__name__
        and "STORE" not in ast.unparse(node.args[0])
    }
    assert writers == {"core/planning/recipes.py"}


def test_hardware_is_asked_for_a_dtype_only_when_its_settings_changed(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(recipes_module, "choose_device", lambda wanted: asked.append(wanted) or "cpu")
    monkeypatch.setattr(recipes_module, "choose_dtype", lambda wanted, device: "bfloat16")
    events = dict(record.events["rich"])
    made = events["base_model", ""]
    events["base_model", ""] = replace(made, summary={**made.summary, "asked": "auto on cpu"})
    for keys, expected in (({"model.dtype": "auto"}, []), ({"model.dtype": "auto", "model.device": "auto"}, ["auto"])):
        workspace = record.workspace(flipped(RICH, keys))
        dtype = OnRecord(workspace, record.store, events).of("base_model").settings["dtype"]
        assert (dtype, asked) == ("bfloat16" if expected else "float32", expected)


def test_a_changed_setting_shows_in_the_code_version_of_what_depends_on_it() -> None:
    def shown(values: Mapping[str, Any]) -> dict[str, str]:
        settings = Settings(**values)
        parts = {"checkpoint": [f"{arm}|0" for arm in settings.selection.arms]}
        of_arms = {"selected_subset", "selection_trust"}
        parts |= {asset: list(settings.selection.arms) for asset in of_arms}
        return {asset: settings_digest(asset, parts.get(asset, [""]), settings) for asset in CODE_VERSIONS}

    base = shown(RICH)
    for name, wanted in {
        "selection.fraction": {"sample_scores", "selected_subset", "selection_trust"},
        "training.max_tokens": {"selected_subset", "selection_trust", "checkpoint", "base_eval", "eval_results"},
        "scoring.commit_seconds": set(),
    }.items():
        now = shown(flipped(RICH, SECOND[name]))
        assert {asset for asset in base if base[asset] != now[asset]} == wanted, name
