"""Grouping pairs into forwards: arithmetic on lengths, without tensors.

A row is one context with some of the probes after it. A forward is a sequence of rows. Splitting a row repeats its
context, so a row is split only if it does not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from icon_assets.core.model.batches import by_length


@dataclass(frozen=True)
class Row:
    """One context (index into the contexts) with the probes (indices) that are scored after it in one forward."""

    context: int
    probes: tuple[int, ...]


def plan_forwards(
    context_lengths: Sequence[int], probe_lengths: Sequence[int], wanted: Sequence[Sequence[int]], budget: int
) -> list[list[Row]]:
    """Group the wanted pairs into forwards of at most `budget` tokens each.

    Args:
        context_lengths: tokens before the probes, per context.
        probe_lengths: tokens per probe.
        wanted: per context, the probes to score after it.
        budget: tokens per forward; a single longer pair still gets its own forward.

    Returns:
        Forwards, each a list of rows, in the order of the contexts. Every wanted pair occurs exactly once.
    """
    forwards: list[list[Row]] = []
    room = 0
    for row in _rows(context_lengths, probe_lengths, wanted, budget):
        size = context_lengths[row.context] + sum(probe_lengths[probe] for probe in row.probes)
        if size > room:
            forwards.append([])
            room = budget
        forwards[-1].append(row)
        room -= size
    return forwards


def _rows(
    context_lengths: Sequence[int], probe_lengths: Sequence[int], wanted: Sequence[Sequence[int]], budget: int
) -> list[Row]:
    rows = []
    for context, probes in enumerate(wanted):
        chosen: list[int] = []
        size = context_lengths[context]
        for probe in probes:
            if chosen and size + probe_lengths[probe] > budget:
                rows.append(Row(context, tuple(chosen)))
                chosen = []
                size = context_lengths[context]
            chosen.append(probe)
            size += probe_lengths[probe]
        if chosen:
            rows.append(Row(context, tuple(chosen)))
    return rows


def halve(rows: Sequence[Row]) -> list[list[Row]]:
    """The pairs of one forward in two halves; nothing for a single pair."""
    if len(rows) > 1:
        middle = len(rows) // 2
        return [list(rows[:middle]), list(rows[middle:])]
    row = rows[0]
    middle = len(row.probes) // 2
    return [[Row(row.context, row.probes[:middle])], [Row(row.context, row.probes[middle:])]] if middle else []


def similar_lengths(pairs: Sequence[tuple[int, int, int]], budget: int) -> list[list[tuple[int, int]]]:
    """Group (context, probe, tokens) for padded batches: shortest first, at most `budget` padded tokens a group."""
    groups = by_length([tokens for _, _, tokens in pairs], tokens=budget, shortest_first=True)
    return [[pairs[index][:2] for index in group] for group in groups]
