"""What scoring costs: counted while it runs, written down with every commit, read back as totals and as a speed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from icon_assets.core.engine import ScoringEngine
from icon_assets.core.flops import ModelShape, Work, device_name, matmul_peak
from icon_assets.core.score_key import ScoreKey
from icon_assets.core.store import Store

_RECENT = 50  # rows that the speed is taken from


@dataclass
class Spent:
    """What a pass computed; all zero when nothing was missing."""

    pairs: int = 0
    control_pairs: int = 0
    forwards: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    peak_flops_per_second: float = 0.0
    engine: str = ""

    def add(self, other: "Spent") -> None:
        self.pairs += other.pairs
        self.control_pairs += other.control_pairs
        self.forwards += other.forwards
        self.tokens += other.tokens
        self.flops += other.flops
        self.seconds += other.seconds
        self.peak_flops_per_second = other.peak_flops_per_second or self.peak_flops_per_second
        self.engine = other.engine or self.engine

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def peak_share(self) -> float:
        """Useful FLOP/s over what this device reached on large matrix products, 0 to 1."""
        possible = self.seconds * self.peak_flops_per_second
        return self.flops / possible if possible else 0.0


class Bill:
    """What was spent since the last commit; `settle` writes it down, so that a run that is killed has its cost on record."""

    def __init__(self, store: Store, key: ScoreKey, shape: ModelShape, engine: ScoringEngine, work: str) -> None:
        """`work`: `pairs` of candidates, `controls`, or `features` of samples."""
        self._store, self._key, self._shape, self._engine, self._work = store, key, shape, engine, work
        device = engine.language_model.device.type
        self._device, self._peak = device_name(device), matmul_peak(device, key.dtype)
        self._begin()

    def _begin(self) -> None:
        meter = self._engine.meter
        self._start, self._pairs, self._forwards, self._did = time.monotonic(), meter.pairs, meter.forwards, meter.work

    def since(self) -> Spent:
        """What the engine did since the last `settle`."""
        meter = self._engine.meter
        did: Work = meter.work - self._did
        pairs = meter.pairs - self._pairs
        of_kind = (0, pairs) if self._work == "controls" else (pairs, 0)
        return Spent(
            *of_kind, meter.forwards - self._forwards, did.tokens, self._shape.flops(did),
            time.monotonic() - self._start, self._peak,
            self._engine.description,
        )  # fmt: skip

    def settle(self) -> Spent:
        spent = self.since()
        row = {
            "created_at": datetime.now(UTC), "score_key": self._key.value, "work": self._work, "device": self._device,
            "engine": spent.engine, "pairs": spent.pairs + spent.control_pairs, "forwards": spent.forwards, "tokens": spent.tokens,
            "flops": spent.flops, "seconds": spent.seconds, "peak_flops_per_second": spent.peak_flops_per_second,
        }  # fmt: skip
        self._store.append("scoring_costs", pl.DataFrame([row]))
        self._begin()
        return spent


def total_cost(store: Store, score_key: str, works: Sequence[str] = ("pairs", "controls")) -> tuple[int, float]:
    """Tokens and seconds that such work has taken so far under this key, over all runs."""
    return store.query(
        """
        SELECT coalesce(sum(tokens), 0)::BIGINT, coalesce(sum(seconds), 0.0) FROM scoring_costs
        WHERE score_key = $key AND "work" IN (SELECT unnest($works::VARCHAR[]))
        """,
        {"key": score_key, "works": list(works)},
    ).row(0)


@dataclass(frozen=True)
class Speed:
    """How fast this model scores on a device. `measured`: `earlier runs` or `a trial just now`."""

    device: str
    tokens_per_second: float
    flops_per_second: float
    peak_share: float
    measured: str


def recorded_speed(store: Store, key: ScoreKey) -> Speed | None:
    """The speed of the newest passes under this key, on the device of the newest of them."""
    row = store.query(
        """
        WITH recent AS (
            FROM scoring_costs WHERE score_key = $key AND "work" <> 'features' ORDER BY created_at DESC LIMIT $n
        )
        SELECT device, sum(tokens) / sum(seconds) AS tokens_per_second, sum(flops) / sum(seconds) AS flops_per_second,
            sum(flops) / sum(seconds * peak_flops_per_second) AS peak_share
        FROM recent WHERE device = (SELECT max_by(device, created_at) FROM recent) GROUP BY device
        """,
        {"key": key.value, "n": _RECENT},
    )
    return Speed(**row.row(0, named=True), measured="earlier runs") if row.height else None
