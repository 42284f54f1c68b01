"""The lineage of record: the inputs of each product, appended by the step that made it.

A `Recipe` is everything that determines a product. When the newest row of an asset's partition has the recipe's
fingerprint, the product is up to date and is not made again. This record survives the loss of Dagster's own history.
"""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import polars as pl

from icon_assets.core.digests import canonical_json, digest
from icon_assets.core.store import inventory
from icon_assets.core.store.schema import schemas
from icon_assets.core.store.tables import Store

STORE = "store"  # of entries about the store itself
_CONTENTS = "contents"  # in a summary: see `inventory`


@dataclass(frozen=True)
class Input:
    """One input of a product: an asset's partition ('' when it has none) or a file, and its digest."""

    asset: str
    partition: str
    digest: str


@dataclass(frozen=True)
class Recipe:
    """The inputs and settings of a product. Equal recipes make equal products."""

    asset: str
    partition: str = ""
    inputs: tuple[Input, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    code_version: str = "1"

    @cached_property
    def fingerprint(self) -> str:
        inputs = sorted([i.asset, i.partition, i.digest] for i in self.inputs)
        return digest([self.asset, self.partition, inputs, dict(self.settings), self.seed, self.code_version])


@dataclass(frozen=True)
class Event:
    """One row of the ledger, with the columns that the pipeline reads."""

    asset: str
    partition: str
    digest: str
    fingerprint: str
    summary: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""

    def as_input(self) -> Input:
        return Input(self.asset, self.partition, self.digest)


def record(
    store: Store,
    recipe: Recipe,
    product_digest: str,
    run_id: str,
    summary: Mapping[str, Any],
    accepted: Collection[str] = (),
    *,
    fingerprint: str | None = None,
) -> Event:
    """Append the row that records `recipe` as made, with the digest of the product. Call it after the product is safely
    stored.

    Args:
        accepted: tables whose rows are accepted as they are from now on, regardless of the record.
        fingerprint: replaces the recipe's. An empty one means that the product must be made again.
    """
    with store.locked("ledger"):  # the counter, and what was written since the previous entry
        contents = inventory.news(store, accepted)
        row = _row(store, recipe, product_digest, run_id, {**summary, **({_CONTENTS: contents} if contents else {})})
        row["fingerprint"] = recipe.fingerprint if fingerprint is None else fingerprint
        store.append(
            "ledger", pl.DataFrame([row], schema_overrides={"seed": pl.Int64}).select(schemas()["ledger"].names)
        )
    return Event(
        recipe.asset,
        recipe.partition,
        product_digest,
        recipe.fingerprint,
        summary,
        recipe.inputs,
        recipe.settings,
        recipe.code_version,
    )


def withdraw(store: Store, recipe: Recipe, event: Event, run_id: str, why: Sequence[str]) -> None:
    """Record that a product is no longer what was made, so that it is made again even if this process is killed now.
    Products made from it keep their record."""
    summary = {**event.summary, "unlike_the_record": list(why)}
    record(store, recipe, event.digest, run_id, summary, fingerprint="")


def _row(store: Store, recipe: Recipe, product_digest: str, run_id: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "event_id": _next_id(store),
        "created_at": datetime.now(UTC),
        "asset": recipe.asset,
        "partition": recipe.partition,
        "digest": product_digest,
        "fingerprint": recipe.fingerprint,
        "inputs": canonical_json(
            [{"asset": i.asset, "partition": i.partition, "digest": i.digest} for i in recipe.inputs]
        ),
        "settings": canonical_json(dict(recipe.settings)),
        "seed": recipe.seed,
        "code_version": recipe.code_version,
        "run_id": run_id,
        "summary": canonical_json(dict(summary)),
    }


def _next_id(store: Store) -> str:
    """32 characters: a counter, which orders entries independently of the clock (view `delta.events`), and random
    characters."""
    counter = 1 + store.query("SELECT greatest(count(*), coalesce(max(counter), 0)) FROM delta.events").item()
    return f"{counter:011d}-{uuid.uuid4().hex[:20]}"


def recorded_summary(text: str) -> dict[str, Any]:
    """The summary that a product was recorded with, without the ledger's own record of the tables."""
    return {name: value for name, value in json.loads(text).items() if name != _CONTENTS}


def take_in(store: Store, run_id: str) -> list[str]:
    """Record the contents of tables that an earlier version wrote without a record. Returns their names."""
    tables = inventory.unrecorded(store)
    if tables:
        record(store, Recipe(STORE), "", run_id, {"known_from_here": tables})
    return tables


def latest(store: Store, asset: str) -> dict[str, Event]:
    """The newest event of each partition of an asset; an asset without partitions has the key ''."""
    return {event.partition: event for event in _newest(store, asset, None)}


def newest(store: Store, asset: str, partition: str = "") -> Event | None:
    """The newest event of one partition."""
    return next(iter(_newest(store, asset, partition)), None)


def _newest(store: Store, asset: str, partition: str | None) -> list[Event]:
    rows = store.query(
        """
        SELECT "partition", digest, fingerprint, summary, inputs, settings, code_version FROM delta.events
        WHERE asset = $asset AND ($partition IS NULL OR "partition" = $partition)
        QUALIFY row_number() OVER (PARTITION BY "partition" ORDER BY seq DESC) = 1
        ORDER BY "partition"
        """,
        {"asset": asset, "partition": partition},
    )
    return [_event(asset, row) for row in rows.iter_rows(named=True)]


def _event(asset: str, row: Mapping[str, Any]) -> Event:
    inputs = tuple(Input(i["asset"], i["partition"], i["digest"]) for i in json.loads(row["inputs"]))
    return Event(
        asset,
        row["partition"],
        row["digest"],
        row["fingerprint"],
        recorded_summary(row["summary"]),
        inputs,
        json.loads(row["settings"]),
        row["code_version"],
    )


def current_shards(store: Store, asset: str) -> list[Event]:
    """The newest event of `asset` for every shard that is in the pool now."""
    shards = set(store.query("SELECT shard FROM shards")["shard"])
    return [event for shard, event in latest(store, asset).items() if shard in shards]


def made(store: Store, recipe: Recipe) -> Event | None:
    """The newest event of the recipe's partition if it was made by this recipe, else None."""
    event = newest(store, recipe.asset, recipe.partition)
    return event if event is not None and event.fingerprint == recipe.fingerprint else None


def differences(event: Event, recipe: Recipe) -> set[str]:
    """How the recipe differs from the event's: names of inputs, dotted keys of settings, `code`."""
    had = {(i.asset, i.partition): i.digest for i in event.inputs}
    has = {(i.asset, i.partition): i.digest for i in recipe.inputs}
    inputs = {key[0] for key in had.keys() | has.keys() if had.get(key) != has.get(key)}
    before = _flat(event.settings)
    now = _flat(json.loads(canonical_json(dict(recipe.settings))))
    settings = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    return inputs | settings | ({"code"} if event.code_version != recipe.code_version else set())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
