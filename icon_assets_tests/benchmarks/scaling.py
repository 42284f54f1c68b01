"""Cost against the number of candidates (x1, x4, x16) and of probes (x1, x4, x16): seconds per token and memory stay
flat.

Each row in a process of its own, compiled and warm before the clock starts; it pays for the controls its samples need.
"""

import logging
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from icon_assets.resources import WorkspaceResource
from icon_assets_tests.benchmarks.common import PeakMemory, draw_lines, in_a_process, parser, report, workspace

FACTORS = (1, 4, 16)


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--candidates", type=int, default=8, help="at x1; x4 where the probes grow")
    arguments_of.add_argument("--count", type=int, default=6, help="probes at x1; x4 where the candidates grow")
    arguments_of.add_argument("--max-probe-chars", type=int, default=700, help="so that few probes are as long as many")
    arguments = arguments_of.parse_args()
    few = [("candidates", f, arguments.candidates * f, arguments.count * 4) for f in FACTORS]
    many = [("probes", f, arguments.candidates * 4, arguments.count * f) for f in FACTORS]
    rows = [{"grown": grown, "factor": factor, **_row(arguments, *size)} for grown, factor, *size in (*few, *many)]
    report(arguments, {"rows": rows}, _lines)


def _row(arguments: Namespace, candidates: int, probes: int) -> dict[str, Any]:
    lines = draw_lines(arguments.pool, candidates, arguments.seed)
    with workspace(arguments, [lines], probes, arguments.max_probe_chars) as icon:
        return {"candidates": candidates, "probes": probes, **in_a_process(_measure, icon.root)}


def _measure(root: str) -> dict[str, Any]:
    icon = WorkspaceResource(root=root)
    shard = icon.store.query("SELECT shard FROM shards").item()
    scorer = icon.scorer(logging.getLogger(__name__))
    engine = scorer._engine
    probes = list(scorer._probes.values())
    engine.compile_for(10**9)
    for _ in engine.score([list(range(100, 400))] * 4, probes, [range(len(probes))] * 4):
        pass  # memory and caches as a long run has them
    with PeakMemory() as memory:
        start = time.monotonic()
        spent = scorer.complete_shard(shard, icon.settings.controls)
        seconds = time.monotonic() - start
    return {
        "engine": spent.engine,
        "pairs": spent.pairs,
        "control_pairs": spent.control_pairs,
        "tokens": spent.tokens,
        "seconds": round(seconds, 2),
        "milliseconds_per_pair": round(1000 * seconds / spent.pairs, 1),
        "tokens_per_pair": round(spent.tokens / spent.pairs, 1),
        "tokens_per_second": round(spent.tokens / seconds),
        "peak_memory_mib": round(memory.mib),
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"engine: {result['rows'][0]['engine']}"
    for row in result["rows"]:
        yield (
            f"{row['grown']:<10} x{row['factor']:<3} {row['candidates']:>4} x {row['probes']:<4} {row['pairs']:>6,} "
            f"pairs and {row['control_pairs']:>6,} of "
            f"controls {row['seconds']:>7.1f} s {row['milliseconds_per_pair']:>6.1f} ms/pair "
            f"{row['tokens_per_pair']:>6.1f} tokens/pair "
            f"{row['tokens_per_second']:>6,} tokens/s {row['peak_memory_mib']:>6,} MiB"
        )


if __name__ == "__main__":
    main()
