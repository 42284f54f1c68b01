"""The data card of an export: its contents, sources, selection and licences."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from icon_assets.core.digests import file_digest
from icon_assets.core.publish.choice import RecordedChoice
from icon_assets.core.publish.dataset import FEATURES, Exported
from icon_assets.core.publish.templates import page
from icon_assets.core.selection.arm import ranks_by
from icon_assets.core.text import Markdown
from icon_assets.workspace import Workspace

_SHOWN_FILES = 50
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "README*")
# The licence names of the Hugging Face hub that data may have.
_HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0",
    "odc-by",
    "odbl",
    "pddl",
    "unlicense",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def data_card(chosen: RecordedChoice, result: Exported, facts: Mapping[str, Any]) -> str:
    head = {
        "license": _hub_licence(chosen.lines),
        "pretty_name": f"{result.arm}: {result.samples} instruction samples chosen with icon-assets",
        "size_categories": [next((name for limit, name in _SIZES if result.samples < limit), "10M<n<100M")],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "data-selection", "icon-assets"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": list(result.files)}]}],
        "dataset_info": {"features": FEATURES[result.format]},
    }
    top = Markdown(yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120))
    return page("data_card.md", **facts, head=top)


def card_facts(workspace: Workspace, chosen: RecordedChoice) -> dict[str, Any]:
    lines = chosen.lines
    store = chosen.store
    shards = store.query("SELECT file, digest, n_samples, n_quarantined FROM shards")
    files = (
        lines.group_by("file")
        .agg(lines=pl.len())
        .join(shards, on="file")
        .sort("lines", "file", descending=[True, False])
    )
    return {
        "reason": _reason(chosen),
        "control": ranks_by(chosen.arm),
        "selector": chosen.selector,
        "subset_id": chosen.subset_id,
        "chosen_at": chosen.event("selected_subset")["created_at"],
        "choice": chosen.event("selected_subset"),
        "scores": chosen.event("sample_scores"),
        "score_key": chosen.score_key,
        "model": chosen.event("base_model"),
        "probes": chosen.event("probe_set"),
        "source_files": files.head(_SHOWN_FILES).to_dicts(),
        "files_not_shown": max(0, files.height - _SHOWN_FILES),
        "lines": lines.height,
        "profile": chosen.profile.to_dicts(),
        "trust": chosen.trust.to_dicts(),
        "licences": _licences(lines),
        "licence_files": _licence_files(workspace),
    }


def _reason(chosen: RecordedChoice) -> str:
    """The reason of the arm, with the name of the arm that it follows."""
    reference = chosen.event("selected_subset")["settings"].get("reference", "another arm")
    return chosen.lines["reason"][0].replace("another arm", reference)


def _licences(lines: pl.DataFrame) -> list[tuple[str, int]]:
    """The licences that the source rows state, most frequent first."""
    return Counter(licence or "not stated" for licence in lines["licence"]).most_common(20)


def _hub_licence(lines: pl.DataFrame) -> str | list[str]:
    """The hub's name for the licences: `unknown` when a line states none, `other` when the hub has no name for one."""
    stated = {None if text is None else text.strip().lower().replace(" ", "-") for text in lines["licence"].unique()}
    if None in stated:
        return "unknown"
    return sorted(filter(None, stated)) if stated <= _HUB_LICENCES else "other"


def _licence_files(workspace: Workspace) -> list[dict[str, str]]:
    """Files in the pool's folder that may state a licence, with what their first line says."""
    pool = workspace.input_path(workspace.settings.pool.path).resolve()
    folder = pool if pool.is_dir() else pool.parent
    found = sorted({path for pattern in _LICENCE_FILES for path in folder.rglob(pattern)})
    return [
        {"file": path.relative_to(folder).as_posix(), "digest": file_digest(path), "says": _first_line(path)}
        for path in found
        if path.is_file() and not path.is_symlink() and path.suffix.lower() in {"", ".md", ".txt", ".rst"}
    ]


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as handle:
        return next((line.strip() for line in handle if line.strip()), "")[:120]
