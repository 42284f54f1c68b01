"""Lineage of record."""

from pathlib import Path

from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Input, Recipe
from icon_assets.core.store.tables import Store

RECIPE = Recipe("scores", "a", (Input("pool", "a", "11"), Input("probes", "", "22")), {"limit": 3}, 7, "1")


def test_a_recipe_is_up_to_date_only_while_nothing_it_is_made_from_changes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert ledger.made(store, RECIPE) is None
    ledger.record(store, RECIPE, "digest", "run", {"rows": 4})
    event = ledger.made(store, RECIPE)
    assert event is not None
    assert (event.digest, event.summary) == ("digest", {"rows": 4})
    changes = [
        {"inputs": (*RECIPE.inputs[:1], Input("probes", "", "33"))},
        {"settings": {"limit": 4}},
        {"seed": 8},
        {"code_version": "2"},
        {"partition": "b"},
    ]
    for change in changes:
        assert ledger.made(store, Recipe(**{**_fields(RECIPE), **change})) is None


def test_the_order_of_inputs_does_not_matter() -> None:
    assert Recipe(**{**_fields(RECIPE), "inputs": RECIPE.inputs[::-1]}).fingerprint == RECIPE.fingerprint


def test_the_newest_row_counts_and_the_old_ones_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = Recipe(**{**_fields(RECIPE), "seed": 8})
    for recipe, digest in ((RECIPE, "1"), (other, "2")):
        ledger.record(store, recipe, digest, "run", {})
    assert ledger.made(store, RECIPE) is None
    assert ledger.latest(store, "scores")["a"].digest == "2"
    assert store.query("SELECT count(*) FROM ledger").item() == 2


def test_inputs_can_be_followed_in_sql(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ledger.record(store, RECIPE, "digest", "run-1", {})
    rows = store.query(
        """
        SELECT asset, i.asset AS made_from, i.digest AS input_digest, run_id
        FROM (
            SELECT *, unnest(from_json(inputs, '[{"asset":"VARCHAR","partition":"VARCHAR","digest":"VARCHAR"}]')) AS i
            FROM ledger
        )
        ORDER BY made_from
        """
    )
    assert rows.rows() == [("scores", "pool", "11", "run-1"), ("scores", "probes", "22", "run-1")]


def _fields(recipe: Recipe) -> dict:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}
