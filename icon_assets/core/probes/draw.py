"""Choosing the probe set: evenly over strata, seeded, without near-duplicates, and without texts that the pool or the
evaluation data already contain, so that neither a score nor a result measures memory.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.inputs.ingest import Quarantined, ingest
from icon_assets.core.inputs.source_files import discover
from icon_assets.core.probes.overlap import Candidate, near_duplicates
from icon_assets.core.store.schema import schemas
from icon_assets.workspace import Workspace


@dataclass(frozen=True)
class Verdict:
    """The verdict on a candidate: `selected`, `spare`, `duplicate`, `near_duplicate`, `in_pool` or `in_evaluation`."""

    candidate: Candidate
    status: str
    detail: str = ""


def read_candidates(workspace: Workspace) -> tuple[list[Candidate], list[tuple[str, Quarantined]]]:
    """The candidates in the files of `probes.path`, and the rows that can't be used, with their files."""
    candidates = []
    quarantined = []
    for source in discover(workspace.input_path(workspace.settings.probes.path), "probes.path"):
        ingested = ingest(source, workspace.settings.pool.max_chars)
        quarantined += [(source.file, row) for row in ingested.quarantine]
        candidates += [
            Candidate(located.sample, located.stratum(source.file), source.file, located.row)
            for located in ingested.samples
        ]
    return candidates, quarantined


def select_probes(
    candidates: Sequence[Candidate],
    count: int,
    seed: int,
    threshold: float,
    in_pool: Mapping[str, str],
    in_evaluation: Mapping[str, str],
) -> list[Verdict]:
    """Decide on every candidate, in a seeded order that depends only on the probe. Then draw `count` evenly over
    strata.

    Args:
        count: probes to draw; if fewer are usable, all of them are taken.
        threshold: Jaccard similarity from which two probes count as the same.
        in_pool, in_evaluation: probe ids with the reason, from `overlaps`.

    Returns:
        One verdict per candidate: the selected first, in drawing order.
    """
    ordered = sorted(candidates, key=lambda c: (draw_key(seed, c.probe_id), c.file, c.row))
    unique: dict[str, Candidate] = {}
    verdicts: list[Verdict] = []
    for candidate in ordered:
        if candidate.probe_id in unique:
            first = unique[candidate.probe_id]
            verdicts.append(Verdict(candidate, "duplicate", f"the same as {first.file}:{first.row}"))
        else:
            unique[candidate.probe_id] = candidate
    usable = []
    twins = near_duplicates(list(unique.values()), threshold)
    for probe_id, candidate in unique.items():
        reasons = (("in_pool", in_pool), ("in_evaluation", in_evaluation), ("near_duplicate", twins))
        status = next((name for name, found in reasons if probe_id in found), None)
        if status is None:
            usable.append(candidate)
        else:
            verdicts.append(Verdict(candidate, status, dict(reasons)[status][probe_id]))
    drawn = _round_robin(usable)
    chosen = [Verdict(c, "selected" if i < count else "spare") for i, c in enumerate(drawn)]
    return [*chosen, *verdicts]


def _round_robin(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One of each stratum in turn, so that every prefix is as even over strata as possible."""
    strata: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        strata[candidate.stratum].append(candidate)
    longest = max(map(len, strata.values()), default=0)
    return [strata[name][turn] for turn in range(longest) for name in sorted(strata) if turn < len(strata[name])]


def verdict_rows(verdicts: Sequence[Verdict], quarantined: Sequence[tuple[str, Quarantined]]) -> pl.DataFrame:
    """Rows of the table `probe_candidates`."""
    rows = [
        {
            "probe_id": v.candidate.probe_id,
            "stratum": v.candidate.stratum,
            "instruction": v.candidate.sample.instruction,
            "input": v.candidate.sample.input,
            "response": v.candidate.sample.response,
            "turns": v.candidate.sample.turns_json(),
            "file": v.candidate.file,
            "row": v.candidate.row,
            "status": v.status,
            "detail": v.detail,
        }
        for v in verdicts
    ] + [
        {"file": file, "row": row.row, "status": "quarantined", "detail": f"{row.reason}: {row.detail}"}
        for file, row in quarantined
    ]
    names = schemas()["probe_candidates"].names
    return pl.DataFrame(rows, schema={name: pl.Int64 if name == "row" else pl.String for name in names})
