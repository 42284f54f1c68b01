"""How fast rows are compared with the ledger: `python -m icon_assets_tests.benchmarks.contents [ROWS]`.

Rows like those of pair_scores and samples, as Delta writes them; each figure is the best of three passes over files
whose bytes the system has in memory."""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from icon_assets.core.digests import digest
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.quality.contents import is_of_its_text
from icon_assets.core.store.inventory import differences
from icon_assets.core.store.tables import Store

_PROBES = 128
_TEXT = "Explain in a few sentences what a reader has to know about this before it is used for the first time. "


def _pairs(rows: int) -> pl.DataFrame:
    samples = [digest(["s", i]) for i in range(rows // _PROBES + 1)]
    probes = [digest(["p", i]) for i in range(_PROBES)]
    random = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "score_key": ["k" * 32] * rows,
            "origin": ["a.jsonl-27a16a60"] * rows,
            "sample_id": [samples[i // _PROBES] for i in range(rows)],
            "probe_id": [probes[i % _PROBES] for i in range(rows)],
            "nll_sum": random.random(rows) * 50,
            "n_tokens": random.integers(1, 99, rows),
        }
    )


def _samples(rows: int) -> pl.DataFrame:
    made = [Sample(f"{_TEXT} {i}", "", _TEXT * 4) for i in range(rows)]
    return pl.DataFrame(
        {
            "shard": ["a"] * rows,
            "file": ["a.jsonl"] * rows,
            "row": list(range(1, rows + 1)),
            "sample_id": [s.sample_id for s in made],
            "instruction": [s.instruction for s in made],
            "input": [""] * rows,
            "response": [s.response for s in made],
            "turns": pl.Series([None] * rows, dtype=pl.String),
            "n_chars": [s.n_chars for s in made],
            "metadata": pl.Series([None] * rows, dtype=pl.String),
        }
    )


def _best(work: Callable[[], object], times: int = 3) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for table, frame in (("pair_scores", _pairs(rows)), ("samples", _samples(rows))):
            start = time.perf_counter()
            store.append(table, frame)
            written = time.perf_counter() - start
            seconds = _best(lambda table=table: differences(store, table, again=True))
            assert differences(store, table) == []
            known = _best(lambda table=table: differences(store, table))
            print(
                f"{table:<12} {rows:,} rows: written and recorded in {written:.2f} s, compared in {seconds:.2f} s "
                f"({rows / seconds:,.0f} rows/s)"
            )
            print(f"{'':<12} looked at before and unchanged since: {known * 1000:.0f} ms")
        texts = store.query("FROM delta.samples LIMIT 100000").to_dicts()
        seconds = _best(lambda: all(is_of_its_text(row, "sample_id") for row in texts))
        print(f"{'sample_id':<12} from the text: {len(texts) / seconds:,.0f} rows/s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
