"""Does the selection work? Arms, fractions and seeds on real data, through the platform's own graph.

    python -m icon_assets_tests.benchmarks.experiment --pool P --probes Q --eval DIR --folder F

Each fraction has a workspace below `--folder`, which stays: `icon-assets -w F/15 ui`, `report`, `trust` and `sql` work
on it. What a run has finished, the next one keeps. The fraction named first is scored; the others begin as copies of
it, and so does, with `--equal-tokens`, a workspace whose arms get the same training tokens instead of the same number
of samples."""

import argparse
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.home import open_instance
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages, stages_of
from icon_assets.workspace import Workspace
from icon_assets_tests.benchmarks.common import parser, report
from icon_assets_tests.benchmarks.experiment.layout import EQUAL_TOKENS, lay_out, write_settings
from icon_assets_tests.benchmarks.experiment.summary import figures, lines
from icon_assets_tests.benchmarks.experiment.variants import variants

# Where scoring lies: what a copy for another fraction can share by hard link, because it is never written again.
_SHARED = shutil.ignore_patterns("dagster_home", "exports", "*.work")
_COPIED = "copied.json"


def main() -> None:
    arguments = _arguments()
    selections = _selections(arguments)
    first = next(iter(selections))
    lay_out(first, arguments)
    result: dict[str, Any] = {}
    whole = not (arguments.stages or arguments.only_report)  # a copy of less would have to be scored again
    for root, selection in selections.items():
        if whole and not root.exists():
            _copy(first, root, selection)
        if not root.exists():
            continue
        workspace = Workspace.load(root)
        if not arguments.only_report:
            _materialize(workspace, arguments.stages)
        if is_of_another(workspace):
            print(
                f"{root}: holds the results of the workspace that it was copied from; not reported before it has a "
                "leaderboard of its own",
                file=sys.stderr,
            )
            continue
        result[root.name] = figures(workspace)
    result["variants"] = variants(WorkspaceResource(root=str(first)))
    report(arguments, result, lines)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--eval", type=Path, required=True, help="folder of multiple-choice .jsonl files")
    options.add_argument("--folder", type=Path, required=True, help="where the workspaces are, or are to be laid out")
    options.add_argument("--samples", type=int, default=2000)
    options.add_argument("--n-probes", type=int, default=128)
    options.add_argument(
        "--probe-chars", type=int, default=700, help="longest line of the probe file to use as a probe"
    )
    options.add_argument("--held-out", type=int, default=100, help="samples for the held-out loss")
    options.add_argument("--items", type=int, default=200, help="per task")
    options.add_argument("--fractions", type=float, nargs="+", default=[0.15, 0.05, 0.3])
    options.add_argument(
        "--equal-tokens", action="store_true", help="the first fraction once more, of the pool's tokens"
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=float, default=3)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument(
        "--stages", nargs="*", default=[], metavar="ASSET", help="only these assets, such as sample_scores"
    )
    options.add_argument("--only-report", action="store_true", help="materialize nothing, report what is there")
    return options.parse_args()


def _selections(arguments: argparse.Namespace) -> dict[Path, dict[str, Any]]:
    """The workspaces, and what each has otherwise in its `selection`."""
    asked = {f"{100 * fraction:g}": {"fraction": fraction} for fraction in arguments.fractions}
    if arguments.equal_tokens:
        asked[f"{100 * arguments.fractions[0]:g}-tokens"] = EQUAL_TOKENS
    return {arguments.folder / name: selection for name, selection in asked.items()}


def _copy(source: Path, target: Path, selection: dict[str, Any]) -> None:
    """A workspace of its own for another selection, with everything that was made for the first. Files are linked: no
    file of the store, of a model or of a checkpoint is ever written to again."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=os.link, ignore=_SHARED)
    values = yaml.safe_load((source / "settings.yaml").read_text("utf-8"))
    values["selection"] |= selection
    (partial / "settings.yaml").unlink()  # or the source's would change with it
    write_settings(partial, values)
    (partial / _COPIED).write_text(json.dumps({"at": datetime.now(UTC).isoformat()}), "utf-8")
    partial.rename(target)


def is_of_another(workspace: Workspace) -> bool:
    """Whether the results in a copy are still those that it began with: no leaderboard was made in it since."""
    path = workspace.root / _COPIED
    if not path.is_file():
        return False
    newer = Store(workspace.store_dir).query(
        "SELECT count(*) FROM ledger WHERE asset = 'leaderboard' AND created_at > $at::TIMESTAMPTZ",
        json.loads(path.read_text("utf-8")),
    )
    return not newer.item()


def _materialize(workspace: Workspace, select: list[str]) -> None:
    assets = build_assets(workspace)
    with open_instance(workspace) as instance:
        for outcome in run_stages(assets, workspace, instance, stages_of(assets, select)):
            print(f"{workspace.root.name}: {outcome.name} {outcome.error or 'done'}", file=sys.stderr)
            if outcome.error:
                raise SystemExit(f"{outcome.name}: {outcome.error}")


if __name__ == "__main__":
    main()
