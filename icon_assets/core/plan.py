"""What the next scoring run will compute and what that costs, before it starts; and what the paper's loop would cost.

Lengths are taken from a random draw of the samples to be scored, tokenized as the engine will see them; speed from what
scoring cost on record, or from a short trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from icon_assets.core.budget import budget_of, rungs
from icon_assets.core.controls import random_chars
from icon_assets.core.encoding import Encoder
from icon_assets.core.engine import ScoringEngine
from icon_assets.core.flops import (
    ModelShape,
    Work,
    context_work,
    device_name,
    matmul_peak,
    pair_work,
    shared_work,
)
from icon_assets.core.language_model import LanguageModel
from icon_assets.core.score_key import ScoreKey
from icon_assets.core.scoring import NO_CONTEXT, Control, controls_for, missing_controls
from icon_assets.core.store import Store, sql_text
from icon_assets.core.tokens import Context, Encoded
from icon_assets.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DRAWN = 200  # samples whose lengths stand for all
_TOKENS_PER_FORWARD = 4096  # of the estimate, when the engine chooses for itself
_RECENT = 50  # cost rows that the speed is taken from
_TRIAL_TOKENS = 12_000


@dataclass(frozen=True)
class Price:
    """Tokens through the model, useful FLOPs, and seconds at the measured speed."""

    tokens: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """How fast this model scores on a device. `measured`: `earlier runs` or `a trial just now`."""

    device: str
    tokens_per_second: float
    flops_per_second: float
    peak_share: float
    measured: str


@dataclass(frozen=True)
class Plan:
    """What is to do, in pairs, and its price.

    Attributes:
        shards: one row per shard: shard, file, samples, unscored_samples, new_pairs.
        pairs: candidate pairs to compute; with a budget, at most.
        exact_pairs: candidate pairs that are not stored.
        control_pairs: probes without context and behind random contexts, to compute.
        budget_share: of all pairs, or None where every pair is computed.
        price: of both; naive: the same scores by one forward per pair, the paper's protocol, at the same speed.
    """

    shards: pl.DataFrame
    n_probes: int
    pairs: int
    exact_pairs: int
    control_pairs: int
    budget_share: float | None
    price: Price
    naive: Price
    speed: Speed | None

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        records = {name: asdict(fields[name]) for name in ("price", "naive", "speed") if fields[name] is not None}
        return {**fields, **records, "shards": self.shards.to_dicts()}


def make_plan(
    store: Store,
    key: ScoreKey,
    settings: Settings,
    shape: ModelShape,
    load_tokenizer: "Callable[[], PreTrainedTokenizerBase]",
    load_model: Callable[[], LanguageModel],
) -> Plan:
    """Compare the pool with what is stored under `key`. The model is loaded only when no speed is on record."""
    enough, share = _enough(settings, store)
    shards = store.query(sql_text("unscored.sql"), {"score_key": key.value, "n": _DRAWN, "enough": enough})
    drawn = shards["drawn"].explode().drop_nulls().sort().head(_DRAWN).to_list()
    probe_rows = store.query("FROM probes ORDER BY probe_id").to_dicts()
    exact, samples = int(shards["new_pairs"].sum() or 0), int(shards["unscored_samples"].sum() or 0)
    pairs = round(share * exact)
    budget_share = share if enough else None
    shown = shards.drop("drawn")
    probe_ids = [row["probe_id"] for row in probe_rows]
    encoder = Encoder(load_tokenizer(), key)
    contexts = [encoder.context(row) for row in _samples(store, drawn)]
    controls = missing_controls(store, key, [NO_CONTEXT, *_controls_of(store, key, settings, contexts)], probe_ids)
    n_controls = sum(map(len, controls.values()))
    if not pairs and not n_controls:
        nothing = Price(0, 0, 0.0)
        return Plan(shown, len(probe_rows), 0, exact, 0, budget_share, nothing, nothing, _recorded_speed(store, key))
    probes = [encoder.probe(row) for row in probe_rows]
    speed = _recorded_speed(store, key) or _trial(load_model(), contexts, probes, encoder.separator, shape, key.dtype)
    budget = settings.scoring.tokens_per_forward
    per_forward = budget if isinstance(budget, int) else _TOKENS_PER_FORWARD
    separator = len(encoder.separator)
    ours = _packed([len(c.ids) + separator for c in contexts], probes, samples, pairs, per_forward) + _controls(
        controls, probes, separator
    )
    naive = _naive(contexts, probes, pairs, load_tokenizer(), key)
    return Plan(
        shown, len(probes), pairs, exact, n_controls, budget_share,
        _price(ours, shape, speed), _price(naive, shape, speed), speed,
    )  # fmt: skip


def _enough(settings: Settings, store: Store) -> tuple[int | None, float]:
    """Probes from which a sample counts as scored (None: all), and the share of the missing pairs that will be computed."""
    samples, probes = store.query(
        "SELECT (SELECT count(DISTINCT sample_id) FROM samples), (SELECT count(*) FROM probes)"
    ).row(0)
    budget = budget_of(settings, samples, probes)
    if budget is None or samples <= budget.pilot:
        return None, 1.0
    first = rungs(probes, budget.share)[0]
    pilot = budget.pilot / samples
    return first, max(budget.share, pilot + (1 - pilot) * first / probes)


def _controls_of(store: Store, key: ScoreKey, settings: Settings, drawn: Sequence[Context]) -> list[Control]:
    """What samples of the lengths that are known or were drawn will be compared with."""
    known = store.query(
        "SELECT DISTINCT n_context_tokens, n_context_chars FROM contexts SEMI JOIN samples USING (sample_id) WHERE score_key = $key",
        {"key": key.value},
    )
    tokens = {*known["n_context_tokens"], *(len(context.ids) for context in drawn)}
    return controls_for(key, settings.controls, tokens, {*known["n_context_chars"], *(c.n_chars for c in drawn)})


def _samples(store: Store, sample_ids: Sequence[str]) -> list[dict[str, Any]]:
    rows = store.query(
        "SELECT DISTINCT ON (sample_id) * FROM samples WHERE sample_id IN (SELECT unnest($ids::VARCHAR[]))",
        {"ids": list(sample_ids)},
    )
    return rows.to_dicts()


def _packed(contexts: Sequence[int], probes: Sequence[Encoded], samples: int, pairs: int, per_forward: int) -> Work:
    """`pairs` over `samples` of typical lengths: a context is computed once per forward it stands in."""
    if not pairs or not contexts or not probes:
        return Work()
    alone, shared = Work(), Work()
    lengths = [len(p.prompt_ids) + len(p.response_ids) - 1 for p in probes]
    total = sum(lengths) * pairs / (samples * len(probes))  # probe tokens behind one context
    for context in contexts:
        room = max(per_forward - context, max(lengths))
        alone += context_work(context) * max(1, ceil(total / room))
        for probe, length in zip(probes, lengths, strict=True):
            shared += shared_work(context, length, len(probe.response_ids))
    return _scaled(alone, samples / len(contexts)) + _scaled(shared, pairs / (len(contexts) * len(probes)))


def _scaled(work: Work, times: float) -> Work:
    return Work(round(work.tokens * times), round(work.attended * times), round(work.scored * times))


def _controls(controls: dict[tuple[str, int, int], list[int]], probes: Sequence[Encoded], separator: int) -> Work:
    work = Work()
    for (_, _, length), needs in controls.items():
        context = length + separator if length else 0
        work += context_work(context)
        for index in needs:
            probe = probes[index]
            work += shared_work(context, len(probe.prompt_ids) + len(probe.response_ids) - 1, len(probe.response_ids))
    return work


def _naive(
    contexts: Sequence[Context], probes: Sequence[Encoded], pairs: int, tokenizer: "PreTrainedTokenizerBase", key: ScoreKey
) -> Work:  # fmt: skip
    """The paper's loop: for every pair one forward behind the candidate and one behind as many random characters, logits
    at every position; and one forward per probe without context.
    """
    if not contexts or not probes:
        return Work()
    work = Work()
    for context in contexts:
        control = len(random_chars(tokenizer, 0, context.n_chars, key.max_context_tokens).ids)
        for probe in probes:
            length = len(probe.prompt_ids) + len(probe.response_ids)
            for before in (len(context.ids), control):
                work += pair_work(before, length, before + length)
    scaled = _scaled(work, pairs / (len(contexts) * len(probes)))
    for probe in probes:
        length = len(probe.prompt_ids) + len(probe.response_ids)
        scaled += pair_work(0, length, length)
    return scaled


def _price(work: Work, shape: ModelShape, speed: Speed) -> Price:
    flops = shape.flops(work)
    return Price(work.tokens, flops, round(flops / speed.flops_per_second, 1))


def _recorded_speed(store: Store, key: ScoreKey) -> Speed | None:
    """The speed of the newest passes under this key, on the device of the newest of them."""
    row = store.query(
        """
        WITH recent AS (
            FROM scoring_costs WHERE score_key = $key ORDER BY created_at DESC LIMIT $n
        )
        SELECT device, sum(tokens) / sum(seconds) AS tokens_per_second, sum(flops) / sum(seconds) AS flops_per_second,
            sum(flops) / sum(seconds * peak_flops_per_second) AS peak_share
        FROM recent WHERE device = (SELECT max_by(device, created_at) FROM recent) GROUP BY device
        """,
        {"key": key.value, "n": _RECENT},
    )
    return Speed(**row.row(0, named=True), measured="earlier runs") if row.height else None


def _trial(
    model: LanguageModel, contexts: Sequence[Context], probes: Sequence[Encoded], separator: Sequence[int],
    shape: ModelShape, dtype: str,
) -> Speed:  # fmt: skip
    """Score a few pairs for their speed alone; the first forward warms up and does not count."""
    import time

    engine = ScoringEngine(model, None)
    texts = [[*context.ids, *separator] for context in contexts] or [[]]
    list(engine.score(texts[:1], probes, [[0]]))
    before, start = engine.meter.work, time.monotonic()
    for _ in engine.score(texts, probes, [range(len(probes))] * len(texts)):
        if (engine.meter.work - before).tokens > _TRIAL_TOKENS:
            break
    seconds, work = time.monotonic() - start, engine.meter.work - before
    rate, device = shape.flops(work) / seconds, model.device.type
    return Speed(
        device_name(device), work.tokens / seconds, rate, rate / matmul_peak(device, dtype), "a trial just now"
    )


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared model, without its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
