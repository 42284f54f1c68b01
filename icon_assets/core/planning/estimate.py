"""The cost of scoring, before it starts, and what the paper's loop would cost for the same scores.

Lengths come from a random draw of the samples to be scored, tokenized as for the engine. The speed comes from recorded
costs of scoring, or from a short trial.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from icon_assets.core.encoding.control_contexts import random_chars
from icon_assets.core.encoding.tokens import Context, Encoded
from icon_assets.core.engine.engine import CPU_TOKENS, CUDA_TOKENS, ScoringEngine
from icon_assets.core.model.flops import (
    ModelShape,
    Work,
    context_work,
    device_name,
    matmul_peak,
    pair_work,
    shared_work,
)
from icon_assets.core.passes.costs import Speed, recorded_speed
from icon_assets.core.passes.encoder import Encoder
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.scoring.controls import Control
from icon_assets.core.store.tables import Store
from icon_assets.settings import ScoringSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIAL_TOKENS = 12_000


@dataclass(frozen=True)
class Price:
    """Tokens through the model, useful FLOPs, and seconds at the measured speed."""

    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Todo:
    """The pairs and controls to compute.

    Attributes:
        contexts: candidates drawn from those that lack pairs; their lengths represent all of them.
        samples: how many candidates lack pairs.
        pairs: candidate pairs to compute.
        controls: for each control context the indices of the probes to score behind it.
    """

    contexts: Sequence[Context]
    samples: int
    pairs: int
    controls: Mapping[Control, Sequence[int]]


class Pricer:
    """Prices under one score_key. The model is loaded only when no speed is on record."""

    def __init__(
        self,
        store: Store,
        key: ScoreKey,
        settings: ScoringSettings,
        shape: ModelShape,
        load_tokenizer: "Callable[[], PreTrainedTokenizerBase]",
        load_engine: Callable[[], ScoringEngine],
        find_device: Callable[[], str],
    ) -> None:
        self._store = store
        self._key = key
        self._settings = settings
        self._shape = shape
        self._load_tokenizer = load_tokenizer
        self._load_engine = load_engine
        self._find_device = find_device

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._load_tokenizer()

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._tokenizer, self._key)

    @cached_property
    def _probes(self) -> list[Encoded]:
        rows = self._store.query("FROM probes ORDER BY probe_id").iter_rows(named=True)
        return [self._encoder.probe(row) for row in rows]

    @cached_property
    def _device(self) -> str:
        return self._find_device()

    @cached_property
    def _recorded_speed(self) -> Speed | None:
        return recorded_speed(self._store, self._key, self._device)

    def context(self, row: Mapping[str, Any]) -> Context:
        """A sample's row as a context of the engine."""
        return self._encoder.context(row)

    def prices(self, todo: Todo) -> tuple[Price, Price, Speed]:
        """Our price, the price of the paper's loop at the same speed, and that speed."""
        ours = self._packed(todo) + self._controls(todo.controls)
        speed = self._recorded_speed or self._trial(todo.contexts, round(ours.tokens))
        return self._price(ours, speed), self._price(self._naive(todo), speed), speed

    def reading(self, drawn: Sequence[Mapping[str, Any]], samples: int) -> Price:
        """The price of reading so many samples for their features, each with and without its prompt, estimated from
        drawn rows."""
        work = Work()
        leading = len(self._encoder.leading)
        for text in map(self._encoder.probe, drawn):
            response = len(text.response_ids)
            work += pair_work(0, leading + len(text.prompt_ids) + response, response)
            work += pair_work(0, leading + response, response)
        features = recorded_speed(self._store, self._key, self._device, ("features",))
        speed = features or self._recorded_speed or self._trial([], 0)
        return self._price(work * (samples / max(1, len(drawn))), speed)

    def _price(self, work: Work, speed: Speed) -> Price:
        flops = self._shape.flops(work)
        return Price(work.tokens, flops, round(flops / speed.flops_per_second, 1))

    def _packed(self, todo: Todo) -> Work:
        """A context is computed once per forward that contains it."""
        probes = self._probes
        n_contexts = len(todo.contexts)
        if not todo.pairs or not n_contexts or not probes:
            return Work()
        alone = Work()
        shared = Work()
        total = sum(p.n_input for p in probes) * todo.pairs / (todo.samples * len(probes))  # behind one context
        for drawn in todo.contexts:
            context = len(drawn.ids) + len(self._encoder.separator)
            alone += context_work(context) * self._forwards(context, total)
            for probe in probes:
                shared += shared_work(context, probe.n_input, len(probe.response_ids))
        return alone * (todo.samples / n_contexts) + shared * (todo.pairs / (n_contexts * len(probes)))

    def _controls(self, controls: Mapping[Control, Sequence[int]]) -> Work:
        work = Work()
        for (_, _, length), needs in controls.items():
            context = length + len(self._encoder.separator) if length else 0
            total = sum(self._probes[index].n_input for index in needs)
            work += context_work(context) * self._forwards(context, total)
            for probe in (self._probes[index] for index in needs):
                work += shared_work(context, probe.n_input, len(probe.response_ids))
        return work

    def _forwards(self, context: int, behind: float) -> int:
        """Forwards that `behind` tokens of probes take, the context in each of them."""
        usual = CPU_TOKENS if self._device.startswith("cpu") else CUDA_TOKENS
        per_forward = self._settings.fixed_tokens_per_forward or usual
        room = max(per_forward - context, *(probe.n_input for probe in self._probes))
        return max(1, ceil(behind / room))

    def _naive(self, todo: Todo) -> Work:
        """For every pair one forward behind the candidate and one behind as many random characters, logits at every
        position; and one forward per probe without context.
        """
        if not todo.contexts or not self._probes:
            return Work()
        work = Work()
        alone = Work()
        lengths = [len(p.prompt_ids) + len(p.response_ids) for p in self._probes]
        for context in todo.contexts:
            control = random_chars(self._tokenizer, 0, context.n_chars, self._key.max_context_tokens)
            for length in lengths:
                for before in (len(context.ids), len(control.ids)):
                    work += pair_work(before, length, before + length)
        for length in lengths:
            alone += pair_work(0, length, length)
        return work * (todo.pairs / (len(todo.contexts) * len(lengths))) + alone

    def _trial(self, contexts: Sequence[Context], tokens: int) -> Speed:
        """Score a few pairs for their speed alone, compiled if the run of so many tokens will be; the first forward
        warms up and does not count."""
        engine = self._load_engine()
        engine.compile_for(tokens)
        texts = [[*context.ids, *self._encoder.separator] for context in contexts] or [[]]
        list(engine.score(texts[:1], self._probes, [[0]]))
        before = engine.meter.work
        start = time.monotonic()
        for _ in engine.score(texts, self._probes, [range(len(self._probes))] * len(texts)):
            if (engine.meter.work - before).tokens > _TRIAL_TOKENS:
                break
        seconds = time.monotonic() - start
        work = engine.meter.work - before
        rate = self._shape.flops(work) / seconds
        device = engine.language_model.device.type
        peak = matmul_peak(device, self._key.dtype)
        return Speed(device_name(device), work.tokens / seconds, rate, rate / peak, "a trial just now")
