"""Output of the command: the plan, one line per finished partition, and live figures while pairs are scored."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from icon_assets.core.passes import progress
from icon_assets.core.planning.plan import Plan, Price
from icon_assets.resources import LogProgress
from icon_assets.runner import Outcome

# The figures on an asset's line, in this order.
_SHOWN = {
    "samples": "samples",
    "quarantined": "quarantined",
    "probes": "probes",
    "strata": "strata",
    "parameters": "parameters",
    "dtype": "",
    "new_pairs": "new pairs",
    "control_pairs": "control pairs",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "steps": "steps",
    "final_loss": "final loss",
    "figures": "figures",
    "warnings": "warnings (see `icon-assets trust`)",
    "metrics": "metrics",
    "arms": "arms",
    "comparisons": "comparisons",
    "new_answers": "new answers",
    "asked": "judgements asked for",
    "bytes": "bytes",
}
_SHOWN_AS_ZERO = {"samples", "quarantined", "new_pairs"}


class RunDisplay:
    """A context manager; `start` and `finish` frame each partition. Plain lines where the output is no terminal."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._console = Console(stderr=silent, highlight=False, soft_wrap=True)
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=silent or not sys.stdout.isatty(),
        )
        self._task: Any = None
        self._started = self._said = 0.0
        self._kept: Counter[str] = Counter()

    def __enter__(self) -> "RunDisplay":
        LogProgress.listeners.append(self._scored)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        LogProgress.listeners.remove(self._scored)
        self._say_kept()
        self._live.stop()

    def start(self, asset: str, partition: str) -> None:
        self._say_kept()
        self._started = self._said = time.monotonic()
        name = f"{asset}[{partition}]" if partition else asset
        self._task = self._live.add_task(name, total=None, figures="")

    def finish(self, outcome: Outcome) -> None:
        if self._task is None:  # up to date, so nothing was started
            self._kept[outcome.asset] += 1
            return
        self._live.remove_task(self._task)
        self._task = None
        if not self._silent:
            self._console.print(_line(outcome, time.monotonic() - self._started), markup=False)
            if outcome.warning:
                self._console.print(f"! {outcome.name:<48} {outcome.warning}", markup=False)

    def _say_kept(self) -> None:
        """One line for all shards of an asset that needed no run."""
        for asset, count in self._kept.items():
            if not self._silent:
                self._console.print(
                    f"= {asset:<48} {count:,} {'shard' if count == 1 else 'shards'} unchanged", markup=False
                )
        self._kept.clear()

    def _scored(self, progress: progress.Progress) -> None:
        seconds = max(progress.seconds, 1e-9)
        figures = f"{progress.done / seconds:,.0f} {progress.unit}/s  {progress.tokens / seconds:,.0f} tokens/s"
        self._live.update(self._task, total=progress.total, completed=progress.done, figures=figures)
        if self._live.disable and not self._silent and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            left = progress.seconds * (progress.total - progress.done) / max(progress.done, 1)
            self._console.print(
                f"  {progress.done:,} of {progress.total:,} {progress.unit}  {figures}  {left:,.0f} s left",
                markup=False,
            )


def _line(outcome: Outcome, seconds: float) -> str:
    if outcome.error:
        return f"✗ {outcome.name:<48} {outcome.error}"
    if not outcome.metadata.get("changed"):
        return f"= {outcome.name:<48} unchanged"
    figures = [
        f"{_figure(outcome.metadata[name])} {unit}".strip()
        for name, unit in _SHOWN.items()
        if outcome.metadata.get(name) not in (None, 0) or name in _SHOWN_AS_ZERO & outcome.metadata.keys()
    ]
    return f"✓ {outcome.name:<48} {seconds:6.1f} s  {', '.join(figures)}"


def _figure(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else str(value)
    )


_LISTED = 40  # shards; a pool of thousands is summed up


def plan_lines(plan: Plan) -> Iterator[str]:
    """A plan for people."""
    counts = ", ".join(f"{plan.count(status):,} {status}" for status in ("new", "stale", "unchanged", "removed"))
    yield f"{plan.shards['samples'].sum():,} samples, {plan.n_probes:,} probes; shards: {counts}"
    for asset, changed in plan.outdated.items():
        yield f"  {asset} will be rebuilt first ({changed}); this plan still uses the old one"
    for file in plan.settling:
        yield f"  {file} is still being written and is left for the next run"
    todo = plan.shards.filter(pl.col("status") != "unchanged")
    yield from (_shard_line(row) for row in todo.head(_LISTED).iter_rows(named=True))
    if todo.height > _LISTED:
        yield f"  and {todo.height - _LISTED:,} more shards"
    if plan.unread_samples:
        yield f"to read      {plan.unread_samples:,} samples for the arms that rank by features: {_price(plan.reading)}"
    if not plan.pairs and not plan.control_pairs:
        yield (
            "Nothing to score: every score is stored."
            if plan.unread_samples
            else "Nothing to compute: every score is stored."
        )
        return
    limit = (
        (f" (at most {plan.budget_share:.0%} of all pairs; without a budget: {plan.exact_pairs:,})")
        if plan.budget_share
        else ""
    )
    yield f"to compute   {plan.pairs:,} pairs{limit}, {plan.control_pairs:,} control pairs"
    yield f"price        {_price(plan.price)}"
    times = plan.naive.flops / max(plan.price.flops, 1)
    yield f"naively      {_price(plan.naive)}: {times:.1f} times the arithmetic, one pair per forward as in the paper"
    if plan.speed is not None:
        share = f"{plan.speed.peak_share:.0%} of its matrix-product peak"
        yield (
            f"speed        {plan.speed.tokens_per_second:,.0f} tokens/s on {plan.speed.device}, {share} "
            f"({plan.speed.measured})"
        )


def _shard_line(row: Mapping[str, Any]) -> str:
    kinds = ("new", "stale", "removed", "unchanged", "not_drawn")
    counts = [f"{row[f'{kind}_samples']:,} {kind.replace('_', ' ')}" for kind in kinds if row[f"{kind}_samples"]]
    samples = ", ".join(counts) or "no samples"
    why = f" ({row['because']})" if row["because"] else ""
    pairs = f"; {row['new_pairs']:,} new pairs" if row["new_pairs"] else ""
    return f"  {row['status']:<9} {row['file']}{why}: {samples}{pairs}"


def _price(price: Price) -> str:
    return f"{_scaled(price.tokens)} tokens, {_scaled(price.flops)}FLOP, about {_duration(price.seconds)}"


def _scaled(value: float) -> str:
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.3g} {prefix}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
