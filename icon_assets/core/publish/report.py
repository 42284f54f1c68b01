"""One self-contained HTML page about a workspace: measurements, selections, whether they pay, and how far to trust
them.

Every section is a function of the store. Where its table is empty, the page says what to run. Equal stores give equal
pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from icon_assets.core.digests import file_digest
from icon_assets.core.errors import IconError
from icon_assets.core.files import new_file
from icon_assets.core.publish.place import allowed_place, disk_faults
from icon_assets.core.publish.report_search import script_hash, search_script, search_section
from icon_assets.core.publish.report_sections import (
    cost_section,
    coverage_section,
    differences_section,
    examples_section,
    leaderboard_section,
    lineage_section,
    losses_section,
    scores_section,
    trust_section,
    verdict_section,
)
from icon_assets.core.publish.report_source import Source
from icon_assets.core.publish.templates import page
from icon_assets.core.selection.arm import ranks_by
from icon_assets.core.trust.warnings import explained_by_length
from icon_assets.workspace import Workspace

MARK = '<meta name="generator" content="icon-assets report">'


@dataclass(frozen=True)
class Report:
    """The page as a file. `missing`: sections without data."""

    path: Path
    digest: str
    n_bytes: int
    missing: Sequence[str]


def write_report(workspace: Workspace, out: Path | None = None) -> Report:
    """Write the page to `out` (default `<workspace>/exports/report.html`). It replaces only an earlier report.

    Raises:
        IconError: `out` can't be used, or the disk can't be written.
    """
    path = allowed_place(workspace, out or workspace.exports_dir / "report.html")
    with disk_faults(path):
        if path.exists() and not _is_report(path):
            raise IconError(f"{path}: exists and is not a report of icon-assets; choose a different --out")
        facts = gather(workspace)
        path.parent.mkdir(parents=True, exist_ok=True)
        new_file(path, page("report.html", **facts))
        missing = [name for name, section in facts["sections"].items() if not section]
        return Report(path, file_digest(path), path.stat().st_size, missing)


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return MARK.encode() in handle.read(2000)


def gather(workspace: Workspace) -> dict[str, Any]:
    """Everything that the page shows. A section without data is empty."""
    source = Source(workspace)
    script = search_script()
    return {
        "mark": MARK,
        "script": script,
        "script_hash": script_hash(script),
        "version": version("icon-assets"),
        "workspace": workspace.root.name,
        "totals": source.totals,
        "model": source.model,
        "arms": source.arms,
        "primary": workspace.settings.controls.primary,
        "score_key": source.score_key,
        "changed_at": next(iter(source.products["created_at"]), None),
        "probe_set": next(iter(source.products.filter(pl.col("asset") == "probe_set")["digest"]), ""),
        "fraction": workspace.settings.selection.fraction,
        "length_warning": source.length_warning,
        "by_length": partial(explained_by_length, limit=source.length_warning),
        "featured": next((arm for arm in source.chosen if ranks_by(arm)), next(iter(source.chosen), "")),
        "sections": {
            "verdict": verdict_section(source),
            "leaderboard": leaderboard_section(source),
            "differences": differences_section(source),
            "pairwise": source.rows("FROM pairwise_results ORDER BY ALL"),
            "cost": cost_section(source),
            "scores": scores_section(source),
            "search": search_section(source),
            "examples": examples_section(source),
            "coverage": coverage_section(source),
            "trust": trust_section(source),
            "selector": source.rows(
                "FROM selector_metrics SEMI JOIN (FROM selectors WHERE is_current) USING (selector_id) ORDER BY ALL"
            ),
            "losses": losses_section(source),
            "lineage": lineage_section(source),
        },
    }
