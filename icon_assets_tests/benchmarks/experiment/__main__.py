"""Does the selection work? Arms, fractions and seeds on real data, through the platform's own graph.

    python -m icon_assets_tests.benchmarks.experiment --pool P --probes Q --eval DIR --folder F

Each fraction has a workspace below `--folder`, which stays: `icon-assets -w F/15 ui`, `report`, `trust` and `sql` work
on it. What a run has finished, the next one keeps. The fraction named first is scored; the others begin as copies of
it, and so does, with `--equal-tokens`, a workspace whose arms get the same training tokens instead of the same number
of samples."""

import argparse
import sys
from pathlib import Path
from typing import Any

from icon_assets.resources import WorkspaceResource
from icon_assets.workspace import Workspace
from icon_assets_tests.benchmarks.common import parser, report
from icon_assets_tests.benchmarks.experiment.layout import EQUAL_TOKENS, lay_out
from icon_assets_tests.benchmarks.experiment.summary import figures, lines
from icon_assets_tests.benchmarks.experiment.variants import variants
from icon_assets_tests.benchmarks.experiment.workspaces import copy, is_of_another, materialize


def main() -> None:
    arguments = _arguments()
    selections = _selections(arguments)
    first = next(iter(selections))
    lay_out(first, arguments)
    result: dict[str, Any] = {}
    whole = not (arguments.stages or arguments.only_report)  # a copy of less would have to be scored again
    for root, selection in selections.items():
        if whole and not root.exists():
            copy(first, root, selection)
        if not root.exists():
            continue
        workspace = Workspace.load(root)
        if not arguments.only_report:
            materialize(workspace, arguments.stages)
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


if __name__ == "__main__":
    main()
