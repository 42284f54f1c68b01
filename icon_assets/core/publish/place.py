"""Where an export or a report may be written, and which files there are its own."""

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
    """Where `out` leads, if something may be written there: in the workspace only below `exports/`, and never among
    inputs.

    Raises:
        IconError: it may not.
    """
    target = out.expanduser().resolve()
    settings = workspace.settings
    inputs = [workspace.input_path(name).resolve() for name in (settings.pool.path, settings.probes.path)]
    if any(target.is_relative_to(place) for place in inputs):
        raise IconError(f"{out}: lies among the inputs and would become one; choose another --out")
    inside = target.is_relative_to(workspace.root) and not target.is_relative_to(workspace.exports_dir.resolve())
    if inside or target == workspace.exports_dir.resolve() or workspace.root.is_relative_to(target):
        raise IconError(f"{out}: belongs to the workspace; choose a name below {workspace.exports_dir}, or outside")
    return target


def refuse_foreign(target: Path, arm: str, form: Format) -> None:
    """Replace nothing but an earlier export of this arm in this format, to which nobody has added anything.

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
        raise IconError(f"{target}: exists and is no export of icon-assets; choose another --out") from error
    if was != (arm, form):
        raise IconError(f"{target}: holds the export of arm {was[0]} as {was[1]}; choose another --out or remove it")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if added := sorted(present - files):
        raise IconError(
            f"{target / added[0]}: was not written by the export and would be lost; move it or choose another --out"
        )


@contextmanager
def disk_faults(target: Path) -> Iterator[None]:
    """A disk that refuses: one line that says the mend."""
    try:
        yield
    except OSError as error:
        raise IconError(
            f"{target}: could not be written ({error.strerror or error}); check free space and permissions, "
            "or choose another --out"
        ) from error
