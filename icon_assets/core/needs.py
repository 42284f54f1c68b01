"""Which assets an arm needs besides the scores: they are run only when an arm of the settings asks for them."""

from collections.abc import Iterable, Mapping

ON_DEMAND = ("sample_features", "probe_features", "selector", "predicted_scores")
_NEEDS: Mapping[str, frozenset[str]] = {
    "icon_selector": frozenset({"sample_features", "selector", "predicted_scores"}),
    "rds": frozenset({"sample_features", "probe_features"}),
    "perplexity": frozenset({"sample_features"}),
    "ifd": frozenset({"sample_features"}),
}


def needed_assets(arms: Iterable[str]) -> set[str]:
    """Those of `ON_DEMAND` that these arms need."""
    return {asset for arm in arms for asset in _NEEDS.get(arm, ())}
