"""Which shards are up to date, and why the others are not."""

from collections.abc import Iterable

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
