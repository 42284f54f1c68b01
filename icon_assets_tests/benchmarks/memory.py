"""What it is worth to keep the memory that tensors free: scoring and training on a CPU, with and without, in turn.

Each in a process of its own. Training gets samples in random order, so that lengths keep changing; its speed is told by
quarters of the steps, because a heap that falls to pieces does so slowly.
"""

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from icon_assets.core.model import memory
from icon_assets.core.model.native import library
from icon_assets.core.training.encode import encode_samples
from icon_assets.core.training.fine_tune import fine_tune
from icon_assets.core.training.step_plan import BatchPlan
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import TrainingSettings
from icon_assets_tests.benchmarks.common import PeakMemory, draw_lines, in_a_process, parser, report, workspace

QUARTERS = 4


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--samples", type=int, default=480, help="to train on, for one epoch in batches of 16")
    arguments_of.add_argument("--candidates", type=int, default=16, help="to score")
    arguments_of.add_argument("--count", type=int, default=48, help="probes")
    arguments = arguments_of.parse_args()
    if library("kept_memory") is None:
        raise SystemExit("no C++ compiler: memory can't be kept, and there is nothing to compare")
    lines = draw_lines(arguments.pool, arguments.samples, arguments.seed)
    with workspace(arguments, [lines], arguments.count) as icon:
        rows = [in_a_process(_measure, icon.root, kept, arguments.candidates) for kept in (False, True)]
    report(arguments, {"rows": rows}, _lines)


def _measure(root: str, kept: bool, candidates: int) -> dict[str, Any]:
    if not kept:
        memory.library = lambda name: None
    icon = WorkspaceResource(root=root)
    return {"kept": kept, "scoring": _score(icon, candidates), "training": _train(icon)}


def _score(icon: WorkspaceResource, candidates: int) -> dict[str, Any]:
    engine = icon.engine()
    encoder = icon.encoder()
    samples = icon.store.query("FROM samples ORDER BY sample_id LIMIT $n", {"n": candidates}).to_dicts()
    contexts = [[*encoder.context(row).ids, *encoder.separator] for row in samples]
    probes = [encoder.probe(row) for row in icon.store.query("FROM probes ORDER BY probe_id").iter_rows(named=True)]
    engine.compile_for(10**9)
    wanted = [range(len(probes))] * len(contexts)
    list(engine.score(contexts[:1], probes, wanted[:1]))  # compiles
    before = engine.meter.work
    start = time.monotonic()
    with PeakMemory() as peak:
        list(engine.score(contexts, probes, wanted))
    seconds = time.monotonic() - start
    return {
        "tokens_per_second": round((engine.meter.work - before).tokens / seconds),
        "peak_memory_mib": round(peak.mib),
    }


def _train(icon: WorkspaceResource) -> dict[str, Any]:
    record, dtype = icon.base_model()
    settings = TrainingSettings(epochs=1, batch_size=16, max_tokens=512)
    samples = encode_samples(record, icon.store.query("FROM samples ORDER BY sample_id"), settings)
    lengths = tuple(len(sample.prompt_ids) + len(sample.response_ids) for sample in samples)
    plan = BatchPlan(lengths, settings.batch_size, settings.epochs, 0)
    times = [time.monotonic()]
    with PeakMemory() as peak, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        work = Path(folder) / "work"
        out.mkdir()
        work.mkdir()
        fine_tune(
            record.directory,
            samples,
            settings,
            0,
            out_dir=out,
            work_dir=work,
            dtype=dtype,
            device="cpu",
            on_step=lambda *_: times.append(time.monotonic()),
        )
    tokens = [sum(lengths[index] for index in step) for step in plan.epoch(0)]
    # The first step has the loading of the model in its time.
    bounds = [1 + (len(tokens) - 1) * quarter // QUARTERS for quarter in range(QUARTERS + 1)]
    speeds = [round(sum(tokens[a:b]) / (times[b] - times[a])) for a, b in pairwise(bounds) if b > a]
    return {"tokens_per_second": speeds, "peak_memory_mib": round(peak.mib)}


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["rows"]:
        scoring = row["scoring"]
        training = row["training"]
        speeds = " ".join(f"{speed:,}" for speed in training["tokens_per_second"])
        yield (
            f"{'kept' if row['kept'] else 'given back':<11} scoring {scoring['tokens_per_second']:,} tokens/s, "
            f"{scoring['peak_memory_mib']:,} "
            f"MiB; training {speeds} tokens/s by quarters, {training['peak_memory_mib']:,} MiB"
        )


if __name__ == "__main__":
    main()
