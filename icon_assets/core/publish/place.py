"""Where an export or a report may be written, and which files there belong to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icon_assets.core.errors import IconError
from icon_assets.core.publish.dataset import Format
from icon_assets.workspace import Workspace

CARD = "README.md"
MANIFEST = "manifest.jsonl"
RECORD = "icon_export.json"
LLAMA_FACTORY = "dataset_info.json"


def allowed_place(workspace: Workspace, out: Path) -> Path:
    """The resolved `out`, if writing is allowed there: inside the workspace only below `exports/`, and never among
    inputs.

    Raises:
        IconError: it may not.
    """
    target = out.expanduser().resolve()
    settings = workspace.settings
    inputs = [workspace.input_path(name).resolve() for name in (settings.pool.path, settings.probes.path)]
    if any(target.is_relative_to(place) for place in inputs):
        raise IconError(f"{out}: is among the inputs and would become one; choose a different --out")
    inside = target.is_relative_to(workspace.root) and not target.is_relative_to(workspace.exports_dir.resolve())
    if inside or target == workspace.exports_dir.resolve() or workspace.root.is_relative_to(target):
        raise IconError(
            f"{out}: belongs to the workspace; choose a path below {workspace.exports_dir}, or outside the workspace"
        )
    return target


def refuse_foreign(target: Path, arm: str, form: Format) -> None:
    """Allow replacing only an earlier export of this arm in this format without added files.

    Raises:
        IconError: something else is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        record = json.loads((target / RECORD).read_text("utf-8"))
        was = (record["arm"], record["format"])
        files = {RECORD, *record["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IconError(f"{target}: exists and is not an export of icon-assets; choose a different --out") from error
    if was != (arm, form):
        raise IconError(
            f"{target}: holds the export of arm {was[0]} as {was[1]}; choose a different --out or remove it"
        )
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if added := sorted(present - files):
        raise IconError(
            f"{target / added[0]}: was not written by the export and would be lost; move it or choose a different --out"
        )


@contextmanager
def disk_faults(target: Path) -> Iterator[None]:
    """Turn a disk error into one line with the fix."""
    try:
        yield
    except OSError as error:
        raise IconError(
            f"{target}: could not be written ({error.strerror or error}); check free space and permissions, or choose "
            "a different --out"
        ) from error
