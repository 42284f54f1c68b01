"""A second run over an unchanged pool: no forward, no model, a few seconds. Scores are made up: nothing is computed."""

import json
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from icon_assets import resources
from icon_assets.core.scoring.controls import NO_CONTEXT, controls_for
from icon_assets.definitions import build_assets
from icon_assets.resources import WorkspaceResource
from icon_assets.runner import run_stages
from icon_assets_tests.benchmarks.common import parser, report, workspace


def main() -> None:
    arguments_of = parser(__doc__, data=False)
    arguments_of.add_argument("--samples", type=int, default=10_000)
    arguments_of.add_argument("--count", type=int, default=48, help="probes")
    arguments = arguments_of.parse_args()
    draw = random.Random(arguments.seed)
    words = ["river", "seven", "paint", "under", "quick", "letter", "sum", "green", "open", "north"]
    texts = [
        {"instruction": f"{n}: {' '.join(draw.choices(words, k=12))}", "output": " ".join(draw.choices(words, k=30))}
        for n in range(arguments.samples + 2 * arguments.count)
    ]
    lines = [json.dumps(text) for text in texts]
    arguments.model = "bundled:smollm2-135m-instruct"
    arguments.dtype = "auto"
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as probes:
        probes.write("\n".join(lines[arguments.samples :]) + "\n")
        probes.flush()
        arguments.probes = Path(probes.name)
        with workspace(arguments, [lines[: arguments.samples]], arguments.count) as icon:
            report(arguments, _rerun(icon, arguments), _lines)


def _rerun(icon: WorkspaceResource, arguments: Namespace) -> dict[str, Any]:
    _make_up(icon)
    space = icon.workspace
    loads = resources._cached_model.cache_info().misses
    rows = []
    with dg.DagsterInstance.ephemeral() as instance:
        for name in ("pairs stored, scores to derive", "nothing changed"):
            start = time.monotonic()
            since = time.time()
            stages = ("probe_baseline", "sample_scores")
            outcomes = list(run_stages(build_assets(space), space, instance, stages))
            failed = [outcome.error for outcome in outcomes if outcome.error]
            assert not failed, failed
            rows.append(
                {
                    "run": name,
                    "seconds_in_all": round(time.monotonic() - start, 2),
                    "forwards": sum(outcome.metadata["forwards"] for outcome in outcomes),
                    "seconds_in_sample_scores": round(_step_seconds(instance, "sample_scores", since), 2),
                }
            )
    loaded = resources._cached_model.cache_info().misses - loads
    return {"samples": arguments.samples, "probes": arguments.count, "models_loaded": loaded, "rows": rows}


def _make_up(icon: WorkspaceResource) -> None:
    """Pairs and controls for everything, as if they had been scored."""
    store = icon.store
    key = icon.score_key()
    shard = store.query("SELECT shard FROM shards").item()
    samples = store.query("SELECT DISTINCT sample_id FROM samples ORDER BY ALL")["sample_id"]
    probes = store.query("SELECT probe_id FROM probes ORDER BY ALL")["probe_id"]
    draw = random.Random(1)
    store.append(
        "contexts",
        pl.DataFrame(
            {
                "score_key": key.value,
                "sample_id": samples,
                "origin": shard,
                "n_context_tokens": [draw.randint(20, 300) for _ in samples],
                "n_context_chars": 100,
                "truncated": False,
            }
        ),
    )
    pairs = pl.DataFrame({"sample_id": samples}).join(pl.DataFrame({"probe_id": probes}), how="cross")
    nll = [draw.uniform(5, 30) for _ in range(pairs.height)]
    store.append(
        "pair_scores",
        pairs.with_columns(
            score_key=pl.lit(key.value), origin=pl.lit(shard), nll_sum=pl.Series(nll), n_tokens=pl.lit(10)
        ),
    )
    controls = [
        {
            "score_key": key.value,
            "probe_id": probe,
            "control": kind,
            "seed": seed,
            "length": length,
            "n_context_tokens": length,
            "nll_sum": draw.uniform(5, 30),
            "n_tokens": 10,
            "truncated": False,
        }
        for kind, seed, length in [NO_CONTEXT, *controls_for(key, icon.settings.controls, range(20, 301), [])]
        for probe in probes
    ]
    store.append("control_scores", pl.DataFrame(controls))


def _step_seconds(instance: dg.DagsterInstance, asset: str, since: float) -> float:
    """Between start and success of the asset's step; 0 where none was started, because the shard is up to date."""
    for record in instance.get_run_records():
        stats = instance.get_run_step_stats(record.dagster_run.run_id)
        for step in stats:
            if step.step_key == asset and (step.start_time or 0) >= since and step.end_time:
                return step.end_time - (step.start_time or 0)
    return 0.0


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['samples']:,} samples x {result['probes']} probes; models loaded: {result['models_loaded']}"
    for row in result["rows"]:
        yield (
            f"{row['run']:<32} {row['forwards']} forwards, {row['seconds_in_sample_scores']} s in sample_scores, "
            f"{row['seconds_in_all']} s in all with the launch of both runs"
        )


if __name__ == "__main__":
    main()
