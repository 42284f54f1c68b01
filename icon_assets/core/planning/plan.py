"""What the next scoring run will find new, stale, unchanged and removed, with reasons and cost.

A sample is stale when it has had scores but pairs of it are missing. A stale shard may need no new pair. Its scores are
then only derived again.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from icon_assets.core.digests import share_ceiling
from icon_assets.core.encoding.tokens import Context
from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.inputs.changes import Found, compare, on_record
from icon_assets.core.inputs.shards import source_files
from icon_assets.core.model.flops import device_name, model_shape
from icon_assets.core.model.loading import choose_device, load_tokenizer
from icon_assets.core.passes.costs import Speed
from icon_assets.core.passes.encoder import pool_rows
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.planning.estimate import Price, Pricer, Todo
from icon_assets.core.planning.freshness import shard_states
from icon_assets.core.planning.preview import preview
from icon_assets.core.planning.recipes import Recipes
from icon_assets.core.scoring.budget import Budget, rungs
from icon_assets.core.scoring.controls import NO_CONTEXT, controls_for, missing_controls
from icon_assets.core.scoring.scorer import pool_size
from icon_assets.core.selection.arm import needed_assets
from icon_assets.core.store.ledger import differences
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace

_DRAWN = 200  # samples whose lengths represent all of them


@dataclass(frozen=True)
class Plan:
    """The work of the next run in shards, samples and pairs, and its price.

    Attributes:
        shards: one row per shard. Columns: shard, file, status (`new`, `stale`, `unchanged`, `removed`), because (the
            parts of the key that changed, or ''), samples, new_samples, stale_samples, unchanged_samples,
            not_drawn_samples (left to a selector, see `scoring.direct_share`), removed_samples, unscored_samples,
            new_pairs.
        settling: files that are still being written, left for the next run.
        outdated: assets upstream of the scores that will be rebuilt first, with what changed. This plan still uses the
            old probes and model.
        pairs: candidate pairs to compute; with a budget, an upper limit.
        exact_pairs: candidate pairs that are not stored.
        control_pairs: pairs to compute of probes without context and after random contexts.
        budget_share: share of all pairs that is computed, or None where every pair is.
        price: of both kinds of pairs. naive: the same scores by one forward per pair, the paper's protocol, at the same
            speed.
        unread_samples: samples to read for their features, where an arm of the settings needs them. reading: their
            price.
    """

    shards: pl.DataFrame
    settling: list[str]
    outdated: dict[str, str]
    n_probes: int
    pairs: int
    exact_pairs: int
    control_pairs: int
    budget_share: float | None
    price: Price
    naive: Price
    speed: Speed | None
    unread_samples: int
    reading: Price

    def count(self, status: str) -> int:
        """Shards of this status."""
        return self.shards.filter(pl.col("status") == status).height

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        records = {
            name: asdict(fields[name]) for name in ("price", "naive", "speed", "reading") if fields[name] is not None
        }
        return {**fields, **records, "shards": self.shards.to_dicts()}


def plan_pool(workspace: Workspace, store: Store, load_engine: Callable[[], ScoringEngine]) -> Plan:
    """The plan of a workspace; its store is only read. The pool and the probes must be ingested.

    Args:
        load_engine: of the base model, for a trial where no speed is on record.

    Raises:
        IconError: something that scores are made from has not been materialized yet.
    """
    recipes = Recipes(workspace, store)
    key = recipes.key
    settings = workspace.settings
    sources = source_files(workspace)
    known = on_record(store)
    found = list(compare(sources, known, settings.pool.settle_seconds))
    gone = sorted(known.keys() - {source.shard for source in sources})
    ahead = preview(store, found, gone, settings.pool.max_chars)
    directory = recipes.base_model()[0].directory
    pricer = Pricer(
        ahead,
        key,
        settings.scoring,
        model_shape(directory),
        lambda: load_tokenizer(directory),
        load_engine,
        lambda: device_name(choose_device(settings.model.device)),
    )
    return make_plan(Recipes(workspace, ahead), found, gone, pricer, needed_assets(settings.selection))


def make_plan(
    recipes: Recipes, found: Sequence[Found], gone: Sequence[str], pricer: Pricer, needed: Collection[str] = ()
) -> Plan:
    """Compare the pool with what is stored under the current score_key.

    Args:
        recipes: over a store with the changed files in it (see `preview`).
        found: the files of the pool folder. gone: recorded shards whose file no longer exists.
        needed: assets besides scores that the arms of the settings rank by.
    """
    store = recipes.store
    settings = recipes.settings
    key = recipes.key
    budget = recipes.budget
    size = pool_size(store, settings.scoring.direct_share)
    ceiling = share_ceiling(settings.scoring.direct_share)
    enough, share = _enough(size, budget)
    shards = store.query(
        sql_text("plan.sql"), {"score_key": key.value, "n": _DRAWN, "enough": enough, "ceiling": ceiling}
    )
    drawn = shards["drawn"].explode().drop_nulls().sort().head(_DRAWN).to_list()
    samples = int(shards["unscored_samples"].sum() or 0)
    exact = int(shards["new_pairs"].sum() or 0)
    pairs = round(share * exact)
    probe_ids = store.query("SELECT probe_id FROM probes ORDER BY ALL")["probe_id"].to_list()
    contexts = [pricer.context(row) for row in pool_rows(store, drawn)]
    wanted = [NO_CONTEXT, *controls_for(key, settings.controls, *_lengths(store, key, contexts, ceiling))]
    controls = missing_controls(store, key, wanted, probe_ids)
    price = Price()
    naive = Price()
    speed = None
    if pairs or controls:
        price, naive, speed = pricer.prices(Todo(contexts, samples, pairs, controls))
    unread, n_unread = _unread(store, key) if "sample_features" in needed else ([], 0)
    current = _with_status(shards.drop("drawn"), recipes, found)
    return Plan(
        pl.concat([current, _removed(store, gone)], how="diagonal").with_columns(
            pl.col(pl.Int64).fill_null(0), pl.col(pl.String).fill_null("")
        ),
        [file.source.file for file in found if file.kind == "settling"],
        _outdated(recipes),
        len(probe_ids),
        pairs,
        exact,
        sum(map(len, controls.values())),
        share if enough else None,
        price,
        naive,
        speed,
        n_unread,
        pricer.reading(pool_rows(store, unread), n_unread) if unread else Price(),
    )


def _unread(store: Store, key: ScoreKey) -> tuple[list[str], int]:
    """Samples without features: some of them, drawn by their ids, and their number."""
    missing = """
        SELECT DISTINCT sample_id FROM delta.pool
        ANTI JOIN (FROM delta.sample_features WHERE score_key = $key) USING (sample_id)
    """
    drawn, n = store.query(
        f"SELECT min(sample_id, $n), count(*) FROM ({missing})",  # noqa: S608  (our own text)
        {"key": key.value, "n": _DRAWN},
    ).row(0)
    return drawn or [], n


def _with_status(shards: pl.DataFrame, recipes: Recipes, found: Sequence[Found]) -> pl.DataFrame:
    states = shard_states(recipes, shards["shard"])
    kinds = {file.source.shard: file.kind for file in found}
    rows = []
    for shard in shards["shard"]:
        status, why = states[shard]
        if kinds.get(shard) == "changed" and status != "new":  # its new text is not recorded yet
            status = "stale"
            why = ", ".join(sorted({*filter(None, why.split(", ")), "text"}))
        rows.append((shard, status, why))
    states_frame = pl.DataFrame(rows, schema=dict.fromkeys(("shard", "status", "because"), pl.String), orient="row")
    return shards.join(states_frame, on="shard").select(
        "shard", "file", "status", "because", pl.exclude("shard", "file", "status", "because")
    )


def _removed(store: Store, gone: Sequence[str]) -> pl.DataFrame:
    """Rows of shards whose file was deleted. `removed_samples` counts samples that are in no other file."""
    return store.query(
        """
        SELECT shard, h.file, 'removed' AS status, count(DISTINCT sample_id) AS removed_samples
        FROM removed_shards h LEFT JOIN (FROM removed_samples ANTI JOIN delta.pool USING (sample_id)) USING (shard)
        WHERE shard IN (SELECT unnest($gone::VARCHAR[])) GROUP BY ALL ORDER BY shard
        """,
        {"gone": list(gone)},
    )


def _outdated(recipes: Recipes) -> dict[str, str]:
    """Assets upstream of the scores that will be rebuilt first, with what changed."""
    outdated = {}
    for asset in ("probe_set", "base_model"):
        event = recipes.made(asset).get("")
        if event is not None and (changed := differences(event, recipes.of(asset))):
            outdated[asset] = ", ".join(sorted(changed))
    return outdated


def _enough(size: tuple[int, int], budget: Budget | None) -> tuple[int | None, float]:
    """The number of probes with which a sample counts as scored (None: all), and the share of the missing pairs that
    will be computed."""
    samples, probes = size
    if budget is None or samples <= budget.pilot:
        return None, 1.0
    pilot = budget.pilot / samples
    first = rungs(probes, budget.share)[0]
    return first, max(budget.share, pilot + (1 - pilot) * first / probes)


def _lengths(store: Store, key: ScoreKey, drawn: Sequence[Context], ceiling: str | None) -> tuple[set[int], set[int]]:
    """Tokens and characters of the contexts that are known or were drawn."""
    known = store.query(
        """
        SELECT DISTINCT n_context_tokens, n_context_chars FROM contexts SEMI JOIN delta.pool USING (sample_id)
        WHERE score_key = $key AND ($ceiling IS NULL OR sample_id < $ceiling)
        """,
        {"key": key.value, "ceiling": ceiling},
    )
    tokens = {*known["n_context_tokens"], *(len(context.ids) for context in drawn)}
    return tokens, {*known["n_context_chars"], *(context.n_chars for context in drawn)}
