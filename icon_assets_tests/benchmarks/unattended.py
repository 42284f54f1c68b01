"""From dropping a file into the pool folder to its scores in SQL, while Dagster's daemon runs with `scoring:
on_change`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from icon_assets.core.errors import IconError
from icon_assets.resources import WorkspaceResource
from icon_assets_tests.benchmarks.common import draw_lines, parser, report, workspace

PATIENCE_SECONDS = 900


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--samples", type=int, default=4, help="in the first file, and in each dropped one")
    arguments_of.add_argument("--count", type=int, default=8, help="probes")
    arguments_of.add_argument("--files", type=int, default=2, help="files to drop, one after the other")
    arguments = arguments_of.parse_args()
    lines = draw_lines(arguments.pool, arguments.samples * (arguments.files + 1), arguments.seed)
    parts = [lines[i :: arguments.files + 1] for i in range(arguments.files + 1)]
    automation = {"scoring": "on_change", "discover_seconds": 5}
    with workspace(arguments, parts[:1], arguments.count, automation=automation) as icon:
        report(arguments, _watch(icon, parts[1:]), _lines)


def _watch(icon: WorkspaceResource, dropped: list[list[str]]) -> dict[str, Any]:
    root = Path(icon.root)
    log = (root / "daemon.log").open("wb")
    command = [sys.executable, "-m", "icon_assets.cli", "-w", str(root), "ui", "--port", "3917"]
    daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        start = time.monotonic()
        first = _seconds_until(lambda: _scored(icon) == len(dropped[0]), start, daemon)
        later = []
        for number, lines in enumerate(dropped):
            wanted = _scored(icon) + len(lines)
            start = time.monotonic()
            (root / "pool" / f"dropped{number}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
            later.append(_seconds_until(lambda wanted=wanted: _scored(icon) == wanted, start, daemon))
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(60)
        log.close()
    selections = icon.store.query("SELECT count(DISTINCT subset_id) FROM selections").item()
    return {
        "first_pool_seconds": round(first, 1),
        "dropped_file_seconds": [round(s, 1) for s in later],
        "subsets": selections,
    }


def _scored(icon: WorkspaceResource) -> int:
    """Samples with a score, as an analyst's query on the published file sees them."""
    try:
        return icon.store.query_published("SELECT count(DISTINCT sample_id) AS n FROM current_scores")["n"].item()
    except IconError:
        return 0  # nothing is published yet


def _seconds_until(done: Callable[[], bool], start: float, daemon: subprocess.Popen[bytes]) -> float:
    while not done():
        if daemon.poll() is not None or time.monotonic() - start > PATIENCE_SECONDS:
            raise SystemExit("the daemon has ended, or nothing was scored in time; see daemon.log in the workspace")
        time.sleep(0.5)
    return time.monotonic() - start


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"from the daemon's start to the scores of the first file: {result['first_pool_seconds']} s"
    for seconds in result["dropped_file_seconds"]:
        yield f"from dropping a file to its scores in SQL: {seconds} s"
    yield f"subsets selected meanwhile: {result['subsets']}"


if __name__ == "__main__":
    main()
