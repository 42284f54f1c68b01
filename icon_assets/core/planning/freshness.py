"""Which shards are up to date, and why the others are not."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from icon_assets.core.inputs.changes import compare, on_record
from icon_assets.core.inputs.shards import source_files
from icon_assets.core.planning.recipes import Recipes, Unready
from icon_assets.core.store.ledger import Event, Recipe, differences

# The part of a sample's key that a difference between recipes belongs to; everything else is `settings`.
_PARTS = {
    "raw_pool": "text",
    "probe_set": "probes",
    "base_model": "model",
    "code": "code",
    "score_key.model_digest": "model",
    "score_key.dtype": "model",
    "score_key.template": "template",
    "score_key.scoring_version": "code",
}
_DERIVED = {"probe_baseline"}  # changes with the parts above
PENDING = ("new", "stale", "removed")


@dataclass(frozen=True)
class Freshness:
    """Status (`new`, `stale`, `unchanged`, `removed`) and reason of every shard."""

    states: Mapping[str, tuple[str, str]]

    @property
    def counts(self) -> dict[str, int]:
        """Shards of each status."""
        counts = Counter(status for status, _ in self.states.values())
        return {status: counts[status] for status in (*PENDING, "unchanged")}

    @property
    def is_current(self) -> bool:
        return not any(self.counts[status] for status in PENDING)

    @property
    def line(self) -> str:
        """Such as `12 of 340 shards stale (model)`."""
        n = len(self.states)
        pending = ((status, self.counts[status]) for status in PENDING)
        line = ", ".join(f"{count:,} of {n:,} shards {status}" for status, count in pending if count)
        why = sorted({part for _, reason in self.states.values() for part in reason.split(", ") if part})
        return (line or f"all {n:,} shards are current") + (f" ({', '.join(why)})" if why else "")


def pool_freshness(recipes: Recipes) -> Freshness:
    """Of every shard by its file's size and time and by the record of the store: what `plan` says, without looking into
    files and without prices."""
    known = on_record(recipes.store)
    sources = source_files(recipes.workspace)
    states = shard_states(recipes, known)
    states |= dict.fromkeys(known.keys() - {source.shard for source in sources}, ("removed", ""))
    for file in compare(sources, known, recipes.settings.pool.settle_seconds):
        if file.kind == "new":
            states[file.source.shard] = ("new", "")
        elif file.kind == "changed":
            states[file.source.shard] = ("stale", "text")
    return Freshness(states)


def because(event: Event | None, recipe: Recipe) -> str:
    """Which parts of the key changed since these scores were made, such as `model, probes`; '' if there are none
    yet."""
    changed = differences(event, recipe) - _DERIVED if event is not None else set[str]()
    return ", ".join(sorted({_PARTS.get(name, "settings") for name in changed}))


def shard_states(recipes: Recipes, shards: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Status and reason of each shard: `new`, `stale` or `unchanged`, by the recipe of its scores."""
    scored = recipes.made("sample_scores")
    current = recipes.current("sample_scores")
    states = {}
    for shard in shards:
        if shard in current:
            states[shard] = ("unchanged", "")
        elif shard in scored:
            states[shard] = ("stale", _why(recipes, shard))
        else:
            states[shard] = ("new", "")
    return states


def _why(recipes: Recipes, shard: str) -> str:
    """Which parts of the key changed; '' where something is missing that scores are made from."""
    try:
        return because(recipes.made("sample_scores")[shard], recipes.of("sample_scores", shard))
    except Unready:
        return ""
