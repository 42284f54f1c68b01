"""The costs of scoring: counted while it runs, recorded with every commit, read back as totals and as a speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from icon_assets.core.engine.engine import ScoringEngine
from icon_assets.core.model.flops import ModelShape, device_name, matmul_peak
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.store.tables import Store

_RECENT = 50  # rows that the speed is taken from
_SCORING = ("pairs", "controls")


@dataclass
class Spent:
    """The work of a pass; all zero when nothing was missing."""

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
    def figures(self) -> dict[str, int | float]:
        """What a person reads of it, besides what was computed."""
        return {
            "forwards": self.forwards,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "flops": self.flops,
            "peak_share": round(self.peak_share, 3),
        }

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def peak_share(self) -> float:
        """Useful FLOP/s over what this device reached on large matrix products, 0 to 1."""
        possible = self.seconds * self.peak_flops_per_second
        return self.flops / possible if possible else 0.0


class Bill:
    """The costs since the last commit. `settle` records them, so that the cost of a killed run is on record."""

    def __init__(self, store: Store, key: ScoreKey, work: str, device: str, total: Callable[[], Spent]) -> None:
        """`work`: `pairs` of candidates, `controls`, `features` of samples, or `selector`. `total`: all costs so far,
        without seconds."""
        self._store = store
        self._key = key
        self._work = work
        self._total = total
        self._device = device_name(device)
        self._peak = matmul_peak(device, key.dtype)
        self._begin()

    def _begin(self) -> None:
        self._start = time.monotonic()
        self._before = self._total()

    def since(self) -> Spent:
        """The costs since the last `settle`."""
        now = self._total()
        before = self._before
        pairs = now.pairs - before.pairs
        of_kind = (0, pairs) if self._work == "controls" else (pairs, 0)
        return Spent(
            *of_kind,
            now.forwards - before.forwards,
            now.tokens - before.tokens,
            now.flops - before.flops,
            time.monotonic() - self._start,
            self._peak,
            now.engine,
        )

    def settle(self) -> Spent:
        spent = self.since()
        row = {
            "created_at": datetime.now(UTC),
            "score_key": self._key.value,
            "work": self._work,
            "device": self._device,
            "engine": spent.engine,
            "pairs": spent.pairs + spent.control_pairs,
            "forwards": spent.forwards,
            "tokens": spent.tokens,
            "flops": spent.flops,
            "seconds": spent.seconds,
            "peak_flops_per_second": spent.peak_flops_per_second,
        }
        self._store.append("scoring_costs", pl.DataFrame([row]))
        self._begin()
        return spent


def engine_bill(store: Store, key: ScoreKey, shape: ModelShape, engine: ScoringEngine, work: str) -> Bill:
    """The costs of a scoring engine."""

    def total() -> Spent:
        meter = engine.meter
        return Spent(
            meter.pairs, 0, meter.forwards, meter.work.tokens, shape.flops(meter.work), engine=engine.description
        )

    return Bill(store, key, work, engine.language_model.device.type, total)


def total_cost(store: Store, score_key: str, works: Sequence[str] = _SCORING) -> tuple[int, float]:
    """Tokens and seconds of such work under this key so far, over all runs."""
    return store.query(
        """
        SELECT coalesce(sum(tokens), 0)::BIGINT, coalesce(sum(seconds), 0.0) FROM scoring_costs
        WHERE score_key = $key AND "work" IN (SELECT unnest($works::VARCHAR[]))
        """,
        {"key": score_key, "works": list(works)},
    ).row(0)


@dataclass(frozen=True)
class Speed:
    """The scoring speed of this model on a device. `measured`: `earlier runs` or `a trial just now`."""

    device: str
    tokens_per_second: float
    flops_per_second: float
    peak_share: float
    measured: str


def recorded_speed(store: Store, key: ScoreKey, device: str, works: Sequence[str] = _SCORING) -> Speed | None:
    """The speed of the newest passes of such work under this key on this device. Other devices are ignored."""
    row = store.query(
        """
        WITH recent AS (
            FROM scoring_costs
            WHERE score_key = $key AND device = $device AND "work" IN (SELECT unnest($works::VARCHAR[]))
            ORDER BY created_at DESC LIMIT $n
        )
        SELECT device, sum(tokens) / sum(seconds) AS tokens_per_second, sum(flops) / sum(seconds) AS flops_per_second,
            sum(flops) / sum(seconds * peak_flops_per_second) AS peak_share
        FROM recent GROUP BY device
        """,
        {"key": key.value, "device": device, "works": list(works), "n": _RECENT},
    )
    return Speed(**row.row(0, named=True), measured="earlier runs") if row.height else None
