"""Budgeted against exact scoring: how much of the true top 15 % is found, for which share of the tokens.

Every pair is scored once, exactly. Then the budgeted pass runs over a copy of the store, several times with other draws
of the pilot; a pair it asks for is looked up instead of computed again, all else is the real code. Beside it, at the
same cost, what comes out when every sample simply gets fewer probes. And whether estimates are as exact as they say:
the share of the samples with fewer probes whose exact score lies in their 90 % interval, and the size of their errors
in standard errors."""

import logging
import math
import random
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import NormalDist
from typing import Any

import polars as pl

from icon_assets.core.engine.engine import CPU_TOKENS
from icon_assets.core.engine.packing import plan_forwards
from icon_assets.core.model.loading import load_tokenizer
from icon_assets.core.passes.costs import Spent
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.scoring.budget import Budget, pilot_size
from icon_assets.core.scoring.budgeted import Budgeted
from icon_assets.core.scoring.contribution import contributions, influences, matrix
from icon_assets.core.scoring.scorer import PAIR_KEY
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store
from icon_assets.resources import WorkspaceResource
from icon_assets.settings import ControlSettings
from icon_assets_tests.benchmarks.common import draw_lines, parser, report, workspace

NINETY = NormalDist().inv_cdf(0.95)


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--candidates", type=int, default=256)
    arguments_of.add_argument("--count", type=int, default=128, help="probes")
    arguments_of.add_argument("--max-probe-chars", type=int, default=None, help="shorter probes cost less")
    arguments_of.add_argument("--workspace", type=Path, help="take the exact scores of this workspace instead")
    arguments_of.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.25, 1 / 3, 0.5, 0.7])
    arguments_of.add_argument("--error-rates", type=float, nargs="+", default=[0.1])
    arguments_of.add_argument("--control", default="none")
    arguments_of.add_argument("--draws", type=int, default=5, help="draws of the pilot (seeds)")
    arguments = arguments_of.parse_args()
    with ExitStack() as stack:
        if arguments.workspace:
            icon = WorkspaceResource(root=str(arguments.workspace.resolve()))
        else:
            lines = draw_lines(arguments.pool, arguments.candidates, arguments.seed)
            icon = stack.enter_context(workspace(arguments, [lines], arguments.count, arguments.max_probe_chars))
            scorer = icon.scorer(logging.getLogger(__name__))
            scorer.complete_baseline()
            scorer.complete_shard(icon.store.query("SELECT shard FROM shards").item(), icon.settings.controls)
        report(arguments, _curve(icon, arguments), _lines)


def _curve(icon: WorkspaceResource, arguments: Namespace) -> dict[str, Any]:
    exact = Exact(icon, arguments.control)
    rows = []
    for share in arguments.shares:
        for error_rate in arguments.error_rates:
            budget = Budget(share, exact.fraction, arguments.control, error_rate, pilot_size(len(exact.scores)), 0)
            runs = [exact.budgeted(budget, seed) for seed in range(arguments.draws)]
            rows.append(
                {
                    "share": round(share, 3),
                    "error_rate": error_rate,
                    "pairs_share": _mean([run["pairs_share"] for run in runs]),
                    "tokens_share": _mean([run["tokens_share"] for run in runs]),
                    "overlap": _mean([run["overlap"] for run in runs]),
                    "overlaps": [run["overlap"] for run in runs],
                    "overlap_of_fewer_probes": _mean([run["overlap_of_fewer_probes"] for run in runs]),
                    "coverage": _mean([run["coverage"] for run in runs]),
                    "root_mean_square_z": _mean([run["root_mean_square_z"] for run in runs]),
                }
            )
    return {
        "samples": len(exact.scores),
        "probes": exact.n_probes,
        "wanted": len(exact.top),
        "control": arguments.control,
        "gaps": exact.gaps(),
        "rows": rows,
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)


class Exact:
    """A workspace whose pairs are all scored: what a budgeted pass is measured against, and looks pairs up in."""

    def __init__(self, icon: WorkspaceResource, control: str) -> None:
        self.icon = icon
        self.control = control
        self.store = icon.store
        self.key = icon.score_key()
        self.controls = ControlSettings(**{**icon.settings.controls.model_dump(), "primary": control})
        self.shards = self.store.query("SELECT shard FROM shards ORDER BY shard")["shard"].to_list()
        self.fraction = icon.settings.selection.fraction
        self.pairs = self.store.query(
            """
            SELECT * FROM delta.pair_scores SEMI JOIN probes USING (probe_id) SEMI JOIN delta.pool USING (sample_id)
            WHERE score_key = $key
            """,
            {"key": self.key.value},
        )
        self.frame = pl.concat([self._contributions(shard) for shard in self.shards])
        self.scores = dict(self.frame.select("sample_id", "contribution").iter_rows())
        self.top = self._top(self.scores)
        encoder = Encoder(load_tokenizer(icon.base_model()[0].directory), self.key)
        probes = {r["probe_id"]: encoder.probe(r) for r in self.store.query("FROM probes").iter_rows(named=True)}
        self.probe_tokens = {p: e.n_input for p, e in probes.items()}
        self.n_probes = len(probes)
        self.contexts = dict(self.store.query("SELECT sample_id, n_context_tokens FROM contexts").iter_rows())
        assert self.pairs.height == self.n_probes * len(self.scores), "not every pair is scored"
        everything = self.pairs.group_by("sample_id").agg("probe_id")
        self.tokens = self.tokens_of(everything)

    def _contributions(self, shard: str) -> pl.DataFrame:
        return contributions(self.store, self.key, shard, self.controls).filter(pl.col("control") == self.control)

    def _top(self, scores: dict[str, float]) -> set[str]:
        return set(sorted(scores, key=lambda s: (-scores[s], s))[: math.ceil(self.fraction * len(scores))])

    def tokens_of(self, wanted: pl.DataFrame) -> int:
        """Tokens of the forwards that score `wanted` (sample_id, probe_id: list)."""
        ids = list(self.probe_tokens)
        index = {probe_id: i for i, probe_id in enumerate(ids)}
        contexts = [self.contexts[sample_id] for sample_id in wanted["sample_id"]]
        lengths = [self.probe_tokens[probe_id] for probe_id in ids]
        asked = [[index[probe_id] for probe_id in probes] for probes in wanted["probe_id"]]
        forwards = plan_forwards(contexts, lengths, asked, CPU_TOKENS)
        return sum(contexts[r.context] + sum(lengths[p] for p in r.probes) for rows in forwards for r in rows)

    def gaps(self) -> dict[str, float]:
        """How close scores lie at the cut: the standard deviation of all, and the distance 1 and 5 ranks around the
        cut."""
        ranked = sorted(self.scores.values(), reverse=True)
        at = len(self.top)
        return {
            "standard_deviation": round(pl.Series(ranked).std() or 0.0, 5),  # pyright: ignore
            "one_rank": round(ranked[at - 1] - ranked[at], 6),
            "five_ranks": round(ranked[at - 5] - ranked[at + 4], 5),
        }

    def budgeted(self, budget: Budget, seed: int) -> dict[str, Any]:
        budget = Budget(budget.share, budget.fraction, budget.control, budget.error_rate, budget.pilot, seed)
        with tempfile.TemporaryDirectory(prefix="icon-benchmark-") as folder:
            replay = Replay(self, Store(Path(folder)), budget)
            budgeted = replay.budgeted
            for shard in self.shards:  # as the asset does: each sees what is known of those before it
                budgeted.complete_shard(shard, replay.complete)
                replay.store.replace("sample_scores", budgeted.scores(shard), shard=shard, score_key=self.key.value)
            scores = pl.concat([budgeted.scores(shard) for shard in self.shards])
        frame = scores.filter(pl.col("control") == self.control)
        found = self._top(dict(frame.select("sample_id", "contribution").iter_rows()))
        estimated = frame.filter(pl.col("standard_error") > 0, pl.col("n_probes") < self.n_probes).join(
            self.frame.select("sample_id", exact="contribution"), on="sample_id"
        )
        z = ((pl.col("contribution") - pl.col("exact")) / pl.col("standard_error")).abs()
        coverage, square = estimated.select((z < NINETY).mean().alias("coverage"), (z**2).mean().alias("square")).row(0)
        return {
            "coverage": coverage,
            "root_mean_square_z": math.sqrt(square),
            "pairs_share": replay.pairs / self.pairs.height,
            "tokens_share": replay.tokens / self.tokens,
            "overlap": len(found & self.top) / len(self.top),
            "overlap_of_fewer_probes": self._overlap_of_fewer(replay.tokens / self.tokens, seed),
        }

    def _overlap_of_fewer(self, share: float, seed: int) -> float:
        """The same tokens spent evenly: every sample gets the same random probes, and the plain mean over them."""
        table = pl.concat([influences(self.store, self.key, shard, self.controls, ()) for shard in self.shards])
        sample_ids, probe_ids, x = matrix(table.filter(pl.col("control") == self.control))
        n = max(1, round(share * len(probe_ids)))
        chosen = random.Random(seed).sample(range(len(probe_ids)), n)
        found = self._top(dict(zip(sample_ids, x[:, chosen].mean(axis=1).tolist(), strict=True)))
        return len(found & self.top) / len(self.top)


class Replay:
    """The real budgeted pass over a copy of the store; missing pairs are looked up."""

    def __init__(self, exact: Exact, store: Store, budget: Budget) -> None:
        self.store = store
        self._exact = exact
        self.pairs = 0
        self.tokens = 0
        for table in ("shards", "samples", "control_scores", "probe_candidates"):
            store.append(table, exact.store.query(f"FROM delta.{table}"))
        self.budgeted = Budgeted(store, exact.key, exact.controls, budget, None, lambda: exact.probe_tokens)

    def complete(self, shard: str | None, samples: list[str] | None = None, probes: list[str] | None = None) -> Spent:
        missing = self.store.query(
            sql_text("missing_pairs.sql"),
            {
                "score_key": self._exact.key.value,
                "shard": shard,
                "samples": samples,
                "probes": probes,
                "ceiling": None,
            },
        ).select("sample_id", probe_id="probe_ids")
        if not missing.height:
            return Spent()
        fresh = missing.explode("probe_id").join(self._exact.pairs, on=["sample_id", "probe_id"])
        assert self.store.append_new("pair_scores", fresh, PAIR_KEY) == fresh.height, "a pair was asked for twice"
        contexts = self._exact.store.query("FROM delta.contexts").filter(
            pl.col("sample_id").is_in(missing["sample_id"].to_list())
        )
        self.store.append_new("contexts", contexts, ("score_key", "sample_id"))
        self.pairs += fresh.height
        self.tokens += self._exact.tokens_of(missing)
        return Spent(pairs=fresh.height)


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['samples']} candidates x {result['probes']} probes, control {result['control']}: the top "
        f"{result['wanted']}"
    )
    yield f"contributions around the cut: {result['gaps']}"
    yield (
        "share  error   pairs  tokens  overlap (each draw)                      fewer probes  in 90 % interval  errors"
    )
    for row in result["rows"]:
        each = " ".join(f"{value:.3f}" for value in row["overlaps"])
        yield (
            f"{row['share']:.3f}  {row['error_rate']:<5}  {row['pairs_share']:.3f}   {row['tokens_share']:.3f}   "
            f"{row['overlap']:.3f} ({each})   {row['overlap_of_fewer_probes']:<12.3f}  {row['coverage']:.3f}         "
            f"{row['root_mean_square_z']:.2f}"
        )


if __name__ == "__main__":
    main()
