"""Does the selection work? Arms, fractions and seeds on real data, by the platform's own graph in a workspace that stays.

    python -m icon_assets_tests.benchmarks.experiment --pool P --probes Q --eval DIR --folder F

Resumable: the workspace in `--folder` is laid out once, and every run goes on from what it holds.
"""

import argparse
import json
import random
from pathlib import Path

import yaml

from icon_assets_tests.benchmarks.common import draw_lines, parser

TASKS = ("arc_easy", "openbook_qa", "commonsense_qa", "piqa")
SHARDS = 8


def lay_out(arguments: argparse.Namespace) -> None:
    """Draw pool, probes, held-out samples (probes that are never scored with) and evaluation items, once."""
    root: Path = arguments.folder
    if (root / "settings.yaml").is_file():
        return
    for name in ("pool", "probes", "eval"):
        (root / name).mkdir(parents=True, exist_ok=True)
    pool = draw_lines(arguments.pool, arguments.samples, arguments.seed)
    for index in range(SHARDS):
        _write(root / "pool" / f"part{index}.jsonl", pool[index::SHARDS])
    probes, held_out = _split(arguments)
    _write(root / "probes" / "probes.jsonl", probes)
    _write(root / "eval" / "held_out.jsonl", held_out)
    for task in TASKS:
        items = draw_lines(arguments.eval / f"{task}.jsonl", arguments.items, arguments.seed)
        _write(root / "eval" / f"{task}.jsonl", items)
    (root / "settings.yaml").write_text(yaml.safe_dump(_settings(arguments), sort_keys=False), "utf-8")


def _split(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Short candidates as probes (a CPU pays per token), further ones of up to twice the length as held-out samples."""
    lines = arguments.probes.read_text("utf-8").splitlines()
    random.Random(arguments.seed).shuffle(lines)
    short = [line for line in lines if len(line) <= arguments.probe_chars]
    probes = short[: round(1.1 * arguments.n_probes)]  # a few are near-duplicates of others
    rest = [line for line in lines if line not in set(probes) and len(line) <= 2 * arguments.probe_chars]
    return [_with_stratum(line) for line in probes], [_with_stratum(line) for line in rest[: arguments.held_out]]


def _with_stratum(line: str) -> str:
    row = json.loads(line)
    return json.dumps({"prompt": row["inputs"], "completion": row["response"], "stratum": row["dataset"]})


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "probes": {"count": arguments.n_probes, "seed": arguments.seed, "budget": "exact"},
        "automation": {"scoring": "off"},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--eval", type=Path, required=True, help="folder of multiple-choice .jsonl files")
    options.add_argument("--folder", type=Path, required=True, help="workspace to lay out, or to go on with")
    options.add_argument("--samples", type=int, default=2000)
    options.add_argument("--n-probes", type=int, default=128)
    options.add_argument(
        "--probe-chars", type=int, default=700, help="longest line of the probe file to use as a probe"
    )
    options.add_argument("--held-out", type=int, default=100)
    options.add_argument("--items", type=int, default=200, help="per task")
    arguments = options.parse_args()
    lay_out(arguments)


if __name__ == "__main__":
    main()
