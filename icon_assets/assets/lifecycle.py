"""The common parts of all asset shells: errors a user can fix, the ledger row, publishing, the unchanged case."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import dagster as dg

from icon_assets.core.errors import IconError
from icon_assets.core.files import disk_errors
from icon_assets.core.quality import sound_event
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.core.text import unlinked
from icon_assets.metadata import visible
from icon_assets.resources import WorkspaceResource

_RETRY_TAG = "dagster/retry_on_asset_or_op_failure"
_OF_THAT_RUN = {
    "tokens",
    "seconds",
    "tokens_per_second",
    "engine",
    "flops",
    "peak_share",
    "drift_samples",
    "drift_rank_correlation",
    "drift_mean_shift",
}
F = TypeVar("F", bound=Callable[..., Any])


def mendable(function: F) -> F:
    """An IconError, or a disk that can't be written, fails the step with one line. Neither step nor run is retried,
    because only the user can fix it."""

    @functools.wraps(function)
    def wrapped(context: dg.AssetExecutionContext, *args: Any, **kwargs: Any) -> Any:
        guard(context.log)
        try:
            store: Store = [*args, *kwargs.values()][-1].store  # of the workspace, or of what a rule looks at
            with disk_errors(function.__name__), store.damage_named():
                return function(context, *args, **kwargs)
        except IconError as error:
            context.instance.add_run_tags(context.run.run_id, {_RETRY_TAG: "false"})
            error.args = (unlinked(str(error)),)  # the UI shows the cause, too
            raise dg.Failure(description=str(error), allow_retries=False) from error

    return wrapped  # pyright: ignore[reportReturnType]


def guard(log: logging.Logger) -> None:
    """Log lines of a step contain no invisible characters and no links. Dagster's own messages stay as they are."""
    log.addFilter(_make_visible)


def _make_visible(record: logging.LogRecord) -> bool:
    if getattr(record, "dagster_event", None) is None:
        record.msg = unlinked(record.getMessage())
        record.args = None
    return True


def kept(context: dg.AssetExecutionContext, icon: WorkspaceResource, recipe: Recipe) -> Event | None:
    """The newest event of the recipe's partition, if it was made by this very recipe and is sound."""
    return sound_event(icon.workspace, recipe, context.run.run_id, context.log.warning)


def unchanged(event: Event) -> dg.MaterializeResult:
    """Report that no input of the product has changed, and keep its data version."""
    return dg.MaterializeResult(data_version=dg.DataVersion(event.digest), metadata=unchanged_figures(event))


def unchanged_and_newest(
    context: dg.AssetExecutionContext, store: Store, recipe: Recipe, event: Event, *, counts: bool
) -> dg.MaterializeResult:
    """The same for a product of which views use the newest. If other products were made differently in between, so that
    this one no longer counts, it is recorded again, because it fits the current settings."""
    if not counts:
        ledger.record(store, recipe, event.digest, context.run.run_id, event.summary)
        store.publish()
    return unchanged(event)


def unchanged_figures(event: Event) -> dict[str, Any]:
    """The metadata of a kept product: its figures from when it was made, without the cost."""
    figures = {name: _shown(value) for name, value in event.summary.items() if isinstance(value, int | float | str)}
    if "new_samples" in figures:
        figures = {name: value for name, value in figures.items() if name not in _OF_THAT_RUN} | {"new_samples": 0}
    if "new_pairs" in figures:  # the cost and drift of that run are not those of this one
        figures = {name: value for name, value in figures.items() if name not in _OF_THAT_RUN} | {
            "new_pairs": 0,
            "control_pairs": 0,
            "forwards": 0,
        }
    return visible({"changed": False, "digest": event.digest, **figures})


def finish(
    context: dg.AssetExecutionContext,
    store: Store,
    recipe: Recipe,
    digest: str,
    summary: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> dg.MaterializeResult:
    """The product is stored: write its ledger row, publish the views, report. `summary` also becomes metadata."""
    ledger.record(store, recipe, digest, context.run.run_id, summary)
    store.publish()
    figures = {name: _shown(value) for name, value in summary.items() if isinstance(value, int | float | str)}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest),
        metadata=visible({"changed": True, "digest": digest, **figures, **(metadata or {})}),
    )


def _shown(value: float | str) -> float | str:
    """A number with six digits for people; the ledger has all digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
