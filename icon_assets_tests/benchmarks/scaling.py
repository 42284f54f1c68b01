"""Cost against the number of candidates (x1, x4, x16) and of probes (x1, x4, x16): seconds per pair and memory stay flat."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from icon_assets.resources import WorkspaceResource
from icon_assets_tests.benchmarks.common import PeakMemory, draw_lines, parser, report, workspace

FACTORS = (1, 4, 16)


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--candidates", type=int, default=8, help="at x1")
    arguments_of.add_argument("--count", type=int, default=6, help="probes at x1")
    arguments = arguments_of.parse_args()
    sizes = [arguments.candidates * factor for factor in FACTORS]
    lines = draw_lines(arguments.pool, sum(sizes), arguments.seed)
    shards = [lines[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        few = stack.enter_context(workspace(arguments, shards, arguments.count))
        arguments.model = str(few.base_model()[0].directory)  # converted once
        _score(few, 0)  # warms up
        rows += [_score(few, i) | {"grown": "candidates", "factor": f} for i, f in enumerate(FACTORS) if f > 1]
        for factor in FACTORS:
            icon = stack.enter_context(workspace(arguments, shards[1:2], arguments.count * factor))
            rows.append(_score(icon, 0) | {"grown": "probes", "factor": factor})
        # The x1 of the candidates, again and warm: the same shard in a store of its own.
        again = stack.enter_context(workspace(arguments, shards[:1], arguments.count))
        rows.insert(0, _score(again, 0) | {"grown": "candidates", "factor": 1})
    report(arguments, {"rows": rows}, _lines)


def _score(icon: WorkspaceResource, index: int) -> dict[str, Any]:
    shard = icon.store.query("SELECT shard FROM shards ORDER BY shard")["shard"][index]
    scorer = icon.scorer(logging.getLogger(__name__))
    assert scorer._engine
    with PeakMemory() as memory:
        start = time.monotonic()
        spent = scorer.complete_shard(shard, icon.settings.controls)
        seconds = time.monotonic() - start
    return {
        "pairs": spent.pairs, "tokens": spent.tokens, "seconds": round(seconds, 2),
        "milliseconds_per_pair": round(1000 * seconds / spent.pairs, 1), "tokens_per_pair": round(spent.tokens / spent.pairs, 1),
        "tokens_per_second": round(spent.tokens / seconds), "peak_memory_mib": round(memory.mib),
    }  # fmt: skip


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["rows"]:
        yield (
            f"{row['grown']:<10} x{row['factor']:<3} {row['pairs']:>6,} pairs {row['seconds']:>8.1f} s {row['milliseconds_per_pair']:>7.1f} "
            f"ms/pair {row['tokens_per_pair']:>7.1f} tokens/pair {row['tokens_per_second']:>7,} tokens/s {row['peak_memory_mib']:>6,} MiB"
        )


if __name__ == "__main__":
    main()
