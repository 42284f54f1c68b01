"""Differences between arms in words: one sentence per arm, and intervals as text."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from icon_assets.core.evaluation.comparison import (
    ACCURACY,
    AGAINST,
    BASE,
    BETTER,
    OPEN,
    WORSE,
    headline,
    is_target,
    rivals_on,
)
from icon_assets.core.inputs.evaluation_files import TARGET


def verdicts_of(differences: pl.DataFrame, reference: str = "", looks: int = 0) -> dict[str, str]:
    """One sentence per arm: whether it beats the selections that cost nothing (`RIVALS`), the evidence, and how it
    compares with `full` and `base`. Where a target was measured, the claim is about the target and `TARGET_RIVALS`.

    Args:
        reference: the arm whose lengths `length_matched` has. It is named if it is not the arm of the sentence.
        looks: at a target; named from the second on.
    """
    by_arm: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(headline(differences).to_dicts(), key=lambda row: AGAINST.index(row["against"])):
        by_arm[row["arm"]].append(row)
    again = f"; look {looks} at the target" if looks > 1 else ""
    return {arm: _sentence(arm, seen, reference) + again for arm, seen in sorted(by_arm.items())}


def _sentence(arm: str, seen: Sequence[Mapping[str, Any]], reference: str) -> str:
    names = {"length_matched": f"length_matched (lengths of {reference})"} if reference not in {"", arm} else {}
    task = TARGET if any(is_target(row["task"]) for row in seen) else ""
    rivals = [row for row in seen if is_target(row["task"]) == bool(task) and row["against"] in rivals_on(row["task"])]
    told = [_claim(arm, rivals, rivals_on(task)), *([f": {_compared(rivals, names)}"] if rivals else [])]
    others = [row for row in seen if row not in rivals]
    beside = f"; {_compared(others, {'full': 'the full pool', BASE: 'the base model'})}" if others else ""
    seeds = min(row["n_seeds"] for row in seen)
    alone = "; one seed: a second one could change this" if seeds == 1 else f"; {seeds} seeds"
    return f"{''.join(told)}{beside}{alone}"


def _compared(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Like `better than random in accuracy; not distinguishable from longest in accuracy and held-out perplexity`."""
    parts = []
    for verdict, words in ((BETTER, "better than"), (WORSE, "worse than"), (OPEN, "not distinguishable from")):
        things: defaultdict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row["verdict"] == verdict:
                name = names.get(row["against"], row["against"])
                things[name].append(_measure(row))
        others: defaultdict[str, list[str]] = defaultdict(list)
        for name, told in things.items():
            others[" and ".join(sorted(told))].append(name)
        parts += [f"{words} {_listed(named)} in {told}" for told, named in others.items()]
    return "; ".join(parts)


def _measure(row: Mapping[str, Any]) -> str:
    if is_target(row["task"]):
        return "target accuracy" if row["metric"] == ACCURACY else "target perplexity"
    return "accuracy" if row["metric"] == ACCURACY else "held-out perplexity"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def _claim(arm: str, seen: Sequence[Mapping[str, Any]], rivals: Sequence[str]) -> str:
    """A gain must hold against every rival in at least one metric, with more than one seed. A loss against any rival in
    any metric counts."""
    said: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in seen:
        said[row["metric"]][row["against"]] = row["verdict"]
    missing = [rival for rival in rivals if rival != arm and rival not in {row["against"] for row in seen}]
    ahead = any(set(each.values()) == {BETTER} for each in said.values())
    if any(WORSE in each.values() for each in said.values()):
        return "a gain in one thing, a loss in another" if ahead and not missing else "a loss"
    if not ahead:
        return "no gain is shown"
    if missing:
        return f"ahead, but not compared with {_listed(missing)}"
    return "a gain" if min(row["n_seeds"] for row in seen) > 1 else "ahead with one seed"


def interval(row: Mapping[str, Any]) -> str:
    """Like `+0.012, -0.003 to +0.027`: with two significant digits of the interval's width."""
    reach = (row["high"] - row["low"]) / 2
    places = max(0, 1 - math.floor(math.log10(reach))) if reach > 0 else 3
    difference, low, high = (f"{row[name]:+z.{places}f}" for name in ("difference", "low", "high"))
    return f"{difference}, {low} to {high}"
