"""Our engine against the paper's loop: same model, device, dtype, candidates and probes, side by side in one run.

The reference is written plainly, as the paper's authors run it: for every pair one forward behind the candidate and one
after as many random characters, drawn each time; batch 1; logits at every position; and each probe once without
context. Candidates come in groups; reference and engine, each in a process of its own, take turns group by group, so
that both meet the same machine and neither the other's memory.
"""

import logging
import math
import random
import string
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import polars as pl

from icon_assets.core.model.flops import Work, matmul_peak, model_shape, pair_work
from icon_assets.core.model.loading import LanguageModel
from icon_assets.core.passes.costs import Spent
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.scoring.contribution import contributions
from icon_assets.core.store.tables import Store
from icon_assets.resources import WorkspaceResource, _cached_model
from icon_assets.settings import ControlSettings
from icon_assets_tests.benchmarks.common import PeakMemory, draw_lines, parser, report, workspace

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " "


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--candidates", type=int, default=16)
    arguments_of.add_argument("--count", type=int, default=48, help="probes")
    arguments_of.add_argument("--groups", type=int, default=4)
    arguments_of.add_argument("--control-seeds", type=int, default=3, help="seeds of random characters to compare with")
    arguments = arguments_of.parse_args()
    lines = draw_lines(arguments.pool, arguments.candidates, arguments.seed)
    shards = [lines[group :: arguments.groups] for group in range(arguments.groups)]
    with workspace(arguments, shards, arguments.count) as icon:
        report(arguments, _compare(icon, arguments), _lines)


def _compare(icon: WorkspaceResource, arguments: Namespace) -> dict[str, Any]:
    record, dtype = icon.base_model()
    store = icon.store
    shape = model_shape(record.directory)
    controls = icon.settings.controls
    peak = matmul_peak(icon.device(), dtype)
    scorer = icon.scorer(logging.getLogger(__name__))
    start = time.monotonic()
    scorer._engine.compile_for(10**9)
    compile_seconds = time.monotonic() - start
    ours = Spent()
    engine_seconds = 0.0
    engine_memory = PeakMemory()
    # In a process of its own, so that neither inherits the other's memory; they never compute at the same time.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other, engine_memory:
        other.submit(_start, icon.root).result()
        for shard in store.query("SELECT shard FROM shards ORDER BY shard")["shard"]:
            other.submit(_score, shard).result()
            start = time.monotonic()
            if not ours.control_pairs:
                ours.add(scorer.complete_baseline())
            ours.add(scorer.complete_shard(shard, controls))
            engine_seconds += time.monotonic() - start
        reference, reference_mib = other.submit(_finish).result()
    costs = dict(store.query('SELECT "work", sum(seconds) FROM scoring_costs GROUP BY "work"').iter_rows())
    tokens = dict(store.query('SELECT "work", sum(tokens)::BIGINT FROM scoring_costs GROUP BY "work"').iter_rows())
    flops = {"reference": shape.flops(reference.work), "engine": ours.flops}
    return {
        "model": record.name,
        "parameters": record.n_parameters,
        "dtype": dtype,
        "engine": ours.engine,
        "candidates": arguments.candidates,
        "probes": arguments.count,
        "pairs": ours.pairs,
        "control_pairs": ours.control_pairs,
        "seconds": {
            "reference": round(reference.seconds, 1),
            "engine": round(engine_seconds, 1),
            "of_it_controls": round(costs["controls"], 1),
            "compiling_before": round(compile_seconds, 1),
        },
        "wall_ratio": round(reference.seconds / engine_seconds, 2),
        "wall_ratio_with_compiling": round(reference.seconds / (engine_seconds + compile_seconds), 2),
        "wall_ratio_without_controls": round(reference.pair_seconds / costs["pairs"], 2),
        "tokens_per_pair": {
            "reference": round(reference.work.tokens / ours.pairs, 1),
            "engine": round(ours.tokens / ours.pairs, 1),
            "engine_without_controls": round(tokens["pairs"] / ours.pairs, 1),
        },
        "tokens_per_second": {
            "reference": round(reference.work.tokens / reference.seconds),
            "engine": round(ours.tokens / ours.seconds),
        },
        "flops_ratio": round(flops["reference"] / flops["engine"], 2),
        "peak_flops_per_second": round(peak),
        "peak_share": {
            "reference": round(flops["reference"] / reference.seconds / peak, 3),
            "engine": round(ours.peak_share, 3),
        },
        "peak_memory_mib": {"reference": round(reference_mib), "engine": round(engine_memory.mib)},
        **_agreement(icon, reference, arguments.control_seeds),
    }


_reference: Any = None  # of the other process


def _start(root: str) -> None:
    global _reference
    icon = WorkspaceResource(root=root)
    record, dtype = icon.base_model()
    model = _cached_model(record.directory, dtype, icon.device())
    _reference = Reference(model, icon.store, Encoder(model.tokenizer, icon.score_key()))
    _reference.warm_up()
    _reference.memory = PeakMemory().__enter__()


def _score(shard: str) -> None:
    _reference.score(shard)


def _finish() -> tuple["Results", float]:
    _reference.score_alone()
    _reference.memory.__exit__()
    return _reference.results, _reference.memory.mib


@dataclass
class Results:
    """`nll[sample, probe]` behind the candidate, `control[sample, probe]` behind random characters, `alone[probe]`."""

    nll: dict[tuple[str, str], float] = field(default_factory=dict)
    control: dict[tuple[str, str], float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    pair_seconds: float = 0.0

    def contribution(self) -> dict[str, float]:
        """Against its own random characters."""
        influence: dict[str, list[float]] = {}
        for (sample, probe), nll in self.nll.items():
            gain = math.exp(self.control[sample, probe]) - math.exp(nll)
            influence.setdefault(sample, []).append(gain / (math.exp(self.alone[probe]) + 1e-6))
        return {sample: sum(values) / len(values) for sample, values in influence.items()}


class Reference:
    """The paper's loop."""

    memory: PeakMemory

    def __init__(self, model: LanguageModel, store: Store, encoder: Encoder) -> None:
        self._model = model
        self._store = store
        self._encoder = encoder
        self._probes = {
            r["probe_id"]: encoder.probe(r) for r in store.query("FROM probes ORDER BY 1").iter_rows(named=True)
        }
        self._draw = random.Random(1)
        self.results = Results()

    def warm_up(self) -> None:
        for probe in list(self._probes.values())[:2]:
            self._forward((), probe)
        self.results = Results()

    def score(self, shard: str) -> None:
        rows = self._store.query("FROM samples WHERE shard = $s AND NOT is_duplicate", {"s": shard}).to_dicts()
        for row in rows:
            context = self._encoder.context(row)
            for probe_id, probe in self._probes.items():
                characters = "".join(self._draw.choices(CHARACTERS, k=context.n_chars))
                control = self._model.tokenizer(characters, add_special_tokens=False).input_ids[:2040]
                self.results.nll[row["sample_id"], probe_id] = self._forward(
                    (*context.ids, *self._encoder.separator), probe
                )
                self.results.control[row["sample_id"], probe_id] = self._forward(
                    (*control, *self._encoder.separator), probe
                )
        self.results.pair_seconds = self.results.seconds

    def score_alone(self) -> None:
        self.results.alone = {probe_id: self._forward((), probe) for probe_id, probe in self._probes.items()}

    def _forward(self, context: Sequence[int], probe: Any) -> float:
        """NLL per response token: all of them, the first one too (the authors' slips are not repeated)."""
        import torch

        start = time.monotonic()
        before = [*self._model.leading, *context, *probe.prompt_ids]
        ids = [*before, *probe.response_ids]
        with torch.inference_mode():
            logits = (
                self._model.model(torch.tensor([ids], device=self._model.device), use_cache=False).logits[0].float()
            )
            targets = torch.tensor(probe.response_ids, device=self._model.device)
            nll = torch.nn.functional.cross_entropy(logits[len(before) - 1 : -1], targets).item()
        self.results.seconds += time.monotonic() - start
        self.results.work += pair_work(0, len(ids), len(ids))
        return nll


def _agreement(icon: WorkspaceResource, reference: Results, n_seeds: int) -> dict[str, Any]:
    """How far the figures are apart: NLL pair by pair, and the ranking under several controls."""
    store = icon.store
    key = icon.score_key()
    pairs = store.query("SELECT sample_id, probe_id, nll_sum / n_tokens AS nll, n_tokens FROM pair_scores").iter_rows()
    differences = [(abs(nll - reference.nll[sample, probe]), n) for sample, probe, nll, n in pairs]
    rankings = {"reference random_chars": reference.contribution()}
    scorer = icon.scorer(logging.getLogger(__name__))
    shards = store.query("SELECT shard FROM shards ORDER BY shard")["shard"].to_list()

    def ranking(kind: str, settings: ControlSettings) -> dict[str, float]:
        parts = [contributions(store, key, shard, settings).filter(pl.col("control") == kind) for shard in shards]
        return dict(pl.concat(parts).select("sample_id", "contribution").iter_rows())

    own = icon.settings.controls
    rankings["random_tokens"] = ranking("random_tokens", own)
    rankings["none"] = ranking("none", own)
    for seed in range(n_seeds):
        chars = ControlSettings(kinds=("none", "random_chars"), seed=seed, draws=1)
        for shard in shards:
            scorer.complete_shard(shard, chars)
        rankings[f"random_chars seed {seed}"] = ranking("random_chars", chars)
    frame = pl.DataFrame(
        [{"sample_id": s, **{n: r[s] for n, r in rankings.items()}} for s in rankings["random_tokens"]]
    )
    ranks = frame.select(pl.exclude("sample_id").rank())
    spearman = {
        name: round(ranks.select(pl.corr("random_tokens", name)).item(), 3)
        for name in ranks.columns
        if name != "random_tokens"
    }
    return {
        "largest_nll_difference_per_token": round(max(d for d, _ in differences), 5),
        "largest_of_responses_over_8_tokens": round(max((d for d, n in differences if n > 8), default=0.0), 5),
        "mean_nll_difference_per_token": round(sum(d for d, _ in differences) / len(differences), 5),
        "spearman_of_random_tokens_with": spearman,
    }


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['model']} ({result['dtype']}, {result['engine']}), {result['candidates']} candidates x "
        f"{result['probes']} probes"
    )
    yield (
        f"wall ratio            {result['wall_ratio']} (compiling counted: {result['wall_ratio_with_compiling']}; "
        f"pairs alone, without the one-off controls: {result['wall_ratio_without_controls']})"
    )
    for name in ("seconds", "tokens_per_pair", "tokens_per_second", "peak_share", "peak_memory_mib"):
        yield f"{name:<22}" + ", ".join(f"{key} {value:,}" for key, value in result[name].items())
    yield f"FLOPs ratio           {result['flops_ratio']}"
    yield (
        f"NLL per token         largest difference {result['largest_nll_difference_per_token']}, over 8 tokens "
        f"{result['largest_of_responses_over_8_tokens']}, mean {result['mean_nll_difference_per_token']}"
    )
    for name, value in result["spearman_of_random_tokens_with"].items():
        yield f"Spearman of contribution, random_tokens with {name}: {value}"


if __name__ == "__main__":
    main()
