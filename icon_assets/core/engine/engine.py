"""The scoring engine: NLL of probes behind contexts, many pairs per forward, through the unchanged Hugging Face model.

A context is computed once and all its probes follow in the same forward: `[context][probe 1][probe 2]...`, the
positions of each probe continuing after the context, each probe attending to the context and itself only (see
`attention`). No padding; vocabulary logits only at response positions, in chunks; log-softmax in float32.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.attention import Kernel, NotPackable, block_mask, register
from icon_assets.core.engine.compiling import Compiling
from icon_assets.core.engine.forward import Batch, Packed
from icon_assets.core.engine.head import Head
from icon_assets.core.engine.packing import Row, halve, plan_forwards, similar_lengths
from icon_assets.core.engine.trial import PACKED, PAIRS, Trial, rotary_limit, window
from icon_assets.core.errors import IconError
from icon_assets.core.model.batches import padded
from icon_assets.core.model.flops import Work
from icon_assets.core.model.loading import LanguageModel
from icon_assets.core.model.memory import freed_memory_kept, in_halves, on_device

if TYPE_CHECKING:
    import torch


SCORING_VERSION = 1
Mode = Literal["packed", "batched", "one by one"]
CPU_TOKENS = 4096  # per forward on a CPU, where more are not faster
CUDA_TOKENS = 65536  # at most, where memory suffices
_LEAST_TOKENS = 1024
_MEMORY_SHARE = 0.6


class UndefinedNll(IconError):
    """The model's NLL of some token is infinite or no number."""


@dataclass(frozen=True)
class Pair:
    """One result: summed NLL in nats of the probe's `n_tokens` response tokens behind the context."""

    context: int
    probe: int
    nll_sum: float
    n_tokens: int


@dataclass(frozen=True)
class Computed:
    """A forward that is under way: what it computes, and the NLL of its scored tokens as its device will give them.

    Attributes:
        parts: what was computed; their pairs one after the other are the order of `nll`.
        nll: [scored tokens], nats, float64.
    """

    parts: list[Packed]
    nll: "torch.Tensor"

    @property
    def by_pair(self) -> "list[tuple[tuple[int, int], torch.Tensor]]":
        """(context, probe) and the NLL of the probe's response tokens; waits for the device."""
        pairs = [pair for packed in self.parts for pair in packed.pairs]
        nll = self.nll.cpu().split([n_tokens for _, _, n_tokens in pairs])
        return [((context, probe), of) for (context, probe, _), of in zip(pairs, nll, strict=True)]


@dataclass
class Meter:
    """What the engine has spent: forwards, pairs scored, and the work they were."""

    forwards: int = 0
    pairs: int = 0
    work: Work = field(default_factory=Work)


class ScoringEngine:
    """NLL of probes behind contexts on one model.

    How pairs share forwards is tried out on the model itself, against its own plain forward: `packed` where its
    attention allows that, else `batched` (padded, the context computed again for every pair), else `one by one`.
    The figures are the same.

    Attributes:
        language_model: what it computes with.
        mode: how it computes.
        partly_unpacked: whether texts longer than an attention window had to be computed unpacked after all.
        tokens_per_forward: the budget; smaller than asked for after a forward that did not fit into memory.
        compiling: by which kernel packed forwards are computed, and whether the model's layers are compiled.
        head: where NLL comes from.
        meter: what was spent.
    """

    def __init__(
        self, language_model: LanguageModel, tokens_per_forward: int | None = None, kernel: Kernel | None = None
    ) -> None:
        """`tokens_per_forward`: None for what fits. `kernel`: None for those that suit the device, a faster one once it
        pays."""
        self.language_model = language_model
        self._model = language_model.model
        self._device = language_model.device
        self._leading = language_model.leading
        self.compiling = Compiling(language_model, kernel)
        self.head = Head(self._model)
        # Forwards that may be under way on a device of its own while the host lays out the next one.
        self.ahead = 1 if self._device.type == "cuda" else 0
        self.meter = Meter()
        self.partly_unpacked = False
        config: Any = self._model.config.get_text_config()
        self._shared_up_to = rotary_limit(config)
        self._packed_up_to = min(window(config), self._shared_up_to)
        self.tokens_per_forward = tokens_per_forward or _LEAST_TOKENS
        register()
        self.head.apart = self.head.can_be_apart and self._agrees(self._one_by_one, PAIRS)
        self.mode: Mode = "packed" if self._packs() else self._unpacked_mode
        if tokens_per_forward is None:
            self.tokens_per_forward = self._fitting_tokens()

    def score(
        self, contexts: Sequence[Sequence[int]], probes: Sequence[Encoded], wanted: Sequence[Sequence[int]]
    ) -> Iterator[list[Pair]]:
        """Score `wanted[i]` (probe indices) behind `contexts[i]`, many pairs at a time.

        Args:
            contexts: token ids before the probe's prompt, the separator included; empty for no context.
            probes: prompt and response ids; every response token is scored, the first one too.
            wanted: per context, the indices of the probes to score.

        Yields:
            The pairs of one forward each, all that were planned for it unless memory or the model's attention made it
            several: what a later run finds missing is then planned, and comes out, as it would have here. NLL in nats,
            summed over the response tokens, accumulated in float32 or wider.

        Raises:
            IconError: a single pair does not fit into the device's memory.
        """
        yield from map(self._pairs, self.forwards(contexts, probes, wanted))

    def forwards(
        self, contexts: Sequence[Sequence[int]], probes: Sequence[Encoded], wanted: Sequence[Sequence[int]]
    ) -> Iterator[Computed]:
        """The forwards of `score`, with the NLL of every scored token; those ahead may still be under way."""
        batch = Batch([[*self._leading, *context] for context in contexts], probes)
        prefixes = [len(prefix) for prefix in batch.prefixes]
        lengths = [probe.n_input for probe in probes]
        with freed_memory_kept(self._device.type):
            planned = plan_forwards(prefixes, lengths, wanted, self.tokens_per_forward)
            yield from _ahead(self._computed(batch, planned), self.ahead)

    def _computed(self, batch: Batch, forwards: Iterable[list[Row]]) -> Iterator[Computed]:
        for rows in forwards:
            for part in [rows] if self.mode == "packed" else self._apart(batch, rows):
                yield from self._fitting(batch, part, packed=self.mode == "packed")

    def _fitting(self, batch: Batch, rows: list[Row], *, packed: bool) -> Iterator[Computed]:
        """The rows in one forward, or in halves of it when memory does not suffice: no pair is lost."""
        compute = partial(self._at_once, batch, packed=packed)
        yield from in_halves(rows, compute, partial(self._halves, batch, packed=packed), self._device.type)

    def _at_once(self, batch: Batch, rows: list[Row], *, packed: bool) -> Iterator[Computed]:
        """The rows in one forward, if they are within the budget and can be packed; else in parts."""
        parts = halve(rows)
        if not parts or _tokens(batch, rows, packed=packed) <= self.tokens_per_forward:
            try:
                computed = self._forward(batch, rows, packed=packed)
            except NotPackable:  # a text longer than a window, or than what rotary frequencies are for
                self.partly_unpacked = True
                packed = False
                parts = self._apart(batch, rows)
            else:
                yield computed
                return
        for part in parts:
            yield from self._fitting(batch, part, packed=packed)

    def _halves(self, batch: Batch, rows: list[Row], *, packed: bool) -> list[list[Row]]:
        """The halves of rows that did not fit into memory; later forwards get a smaller budget."""
        tokens = _tokens(batch, rows, packed=packed)
        if not (parts := halve(rows)):
            raise IconError(
                f"out of memory on one pair of {tokens} tokens; lower scoring.max_context_tokens, use a smaller "
                "model, or a device with more memory"
            ) from None
        self.tokens_per_forward = max(tokens // 2, 1)
        return parts

    def _forward(self, batch: Batch, rows: list[Row], *, packed: bool) -> Computed:
        if packed:
            return self._forward_packed(batch, rows)
        return self._forward_batched(batch, rows) if len(rows) > 1 else self._forward_one(batch, rows)

    def _apart(self, batch: Batch, rows: list[Row]) -> list[list[Row]]:
        """The pairs of packed rows as rows of their own: batches of similar length, or one by one."""
        pairs = [Row(row.context, (probe,)) for row in rows for probe in row.probes]
        lengths = [(pair.context, pair.probes[0], batch.tokens([pair])) for pair in pairs]
        return [[Row(context, (probe,)) for context, probe in group] for group in self.grouped(lengths)]

    def grouped(self, lengths: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int]]]:
        """Which texts, (two keys, tokens) each, may share a padded forward: of similar length, within the budget."""
        if self._unpacked_mode == "one by one":
            return similar_lengths(lengths, 1)
        alone = [each for each in lengths if each[2] > self._shared_up_to]
        shared = [each for each in lengths if each[2] <= self._shared_up_to]
        return similar_lengths(shared, self.tokens_per_forward) + similar_lengths(alone, 1)

    def _forward_packed(self, batch: Batch, rows: list[Row]) -> Computed:
        """Several rows in one forward."""
        return self.compiling.giving_way(lambda: self._packed(batch.pack(rows, self.compiling.kernel)))

    def _packed(self, packed: Packed) -> Computed:
        if packed.layout.longest > self._packed_up_to:
            raise NotPackable
        if packed.layout.kernel == "flex":
            packed.layout.block_mask = block_mask(packed.layout, len(packed.ids), self._device)
        with self.compiling.in_model():
            nll = self._token_nll([packed.ids], [packed.positions], None, packed, packed_layout=packed.layout)
        return Computed([packed], nll)

    def _forward_batched(self, batch: Batch, rows: list[Row]) -> Computed:
        """One pair per row, padded on the right; the model runs with its own attention."""
        alone = [batch.pack([row], "segments") for row in rows]
        ids, mask = padded([packed.ids for packed in alone])
        width = len(ids[0])
        flat = Packed(
            scored=[i * width + position for i, packed in enumerate(alone) for position in packed.scored],
            targets=[target for packed in alone for target in packed.targets],
        )
        return Computed(alone, self._token_nll(ids, None, on_device(mask, self._device), flat))

    def _one_by_one(self, batch: Batch, rows: list[Row]) -> Computed:
        import torch

        each = [self._forward_one(batch, [row], apart=True) for row in rows]
        return Computed([packed for one in each for packed in one.parts], torch.cat([one.nll for one in each]))

    def _forward_one(self, batch: Batch, rows: list[Row], *, apart: bool | None = None) -> Computed:
        """One pair, exactly as the model came: the reference for everything else."""
        packed = batch.pack(rows, "segments")
        return Computed([packed], self._token_nll([packed.ids], None, None, packed, apart=apart))

    def _token_nll(
        self,
        ids: list[list[int]],
        positions: list[list[int]] | None,
        mask: Any,
        packed: Packed,
        *,
        apart: bool | None = None,
        **more: Any,
    ) -> "torch.Tensor":
        """NLL in nats at the scored positions (of the flattened batch), float64; nothing here waits for the device."""
        device = self._device
        inputs: dict[str, Any] = {
            "input_ids": on_device(ids, device),
            "position_ids": on_device(positions, device) if positions else None,
            "attention_mask": mask,
            "use_cache": False,
            **more,
        }
        scored = on_device(packed.scored, device)
        width = len(ids[0])
        return self.head.nll(inputs, scored // width, scored % width, on_device(packed.targets, device), apart=apart)

    def _pairs(self, computed: Computed) -> list[Pair]:
        """The pairs of a forward, waiting for it where it is still under way; what it was counts from here on."""
        found = [Pair(context, probe, nll.sum().item(), len(nll)) for (context, probe), nll in computed.by_pair]
        if not all(isfinite(pair.nll_sum) for pair in found):
            raise UndefinedNll(
                "the model gives an infinite or undefined NLL; set model.dtype to float32, or use another model"
            )
        self.meter.forwards += 1
        self.meter.pairs += len(found)
        for packed in computed.parts:
            self.meter.work += packed.work
        return found

    @cached_property
    def _unpacked_mode(self) -> Mode:
        return "batched" if self._agrees(self._forward_batched, PAIRS) else "one by one"

    def _packs(self) -> bool:
        return self._model._can_set_attn_implementation() and self.packed_agrees()

    def packed_agrees(self) -> bool:
        """Whether packed forwards, as they are computed now, give the model's own figures."""
        return self._agrees(self._forward_packed, PACKED)

    def _agrees(self, forward: Callable[[Batch, list[Row]], Computed], rows: list[Row]) -> bool:
        """Whether a way to compute pairs gives what plain forwards give, tried on this model with a few small pairs."""
        config: Any = self._model.config.get_text_config()
        experts = any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
        trial = Trial(self._leading, next(self._model.parameters()).dtype.itemsize >= 4, experts)
        # the trial is not the user's work
        spent = self.meter
        self.meter = Meter()
        try:
            return trial.passed(
                lambda batch, rows: [pair.nll_sum for pair in self._pairs(forward(batch, rows))],
                rows,
                lambda batch, row: self._pairs(self._forward_one(batch, [row], apart=False))[0].nll_sum,
                # Other kernels work in blocks of tokens: their trial must be longer than a few of them.
                times=1 if self.compiling.kernel == "segments" else 16,
            )
        except UndefinedNll:
            return False
        finally:
            self.meter = spent

    def _fitting_tokens(self) -> int:
        """Tokens per forward that fill a good part of the free memory, measured with one small forward."""
        import torch

        if self._device.type != "cuda":
            return CPU_TOKENS
        tokens = _LEAST_TOKENS
        batch = Batch([[3] * (tokens // 2)], [Encoded((3,), (3,) * (tokens // 2))])
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        list(self._fitting(batch, [Row(0, (0,))], packed=self.mode == "packed"))
        self.meter = Meter()
        per_token = max(1, torch.cuda.max_memory_allocated(self._device) - before) / tokens
        free, _ = torch.cuda.mem_get_info(self._device)
        return min(CUDA_TOKENS, max(_LEAST_TOKENS, int(free * _MEMORY_SHARE / per_token)))

    def compile_for(self, tokens: int) -> bool:
        """Compile the model's layers if `tokens` are enough to pay for it and this machine can; returns `compiled`.
        Where the compiler fails, or what it made does not give the same, the engine goes on without."""
        tokens += self.meter.work.tokens  # small passes add up
        if self.mode == "packed" and self.compiling.pays(tokens):
            self.compiling.try_out(self.packed_agrees)
        return self.compiled

    @property
    def compiled(self) -> bool:
        return bool(self.compiling.layers)

    @property
    def description(self) -> str:
        """How it computes, for people: `packed, fused, compiled`."""
        kernel = self.compiling.kernel
        notes = [kernel] * (kernel != "segments") + ["compiled"] * self.compiled
        return ", ".join([self.mode, *notes, *[f"partly {self._unpacked_mode}"] * self.partly_unpacked])


def _tokens(batch: Batch, rows: list[Row], *, packed: bool) -> int:
    """Of the forward of these rows, padding included."""
    return batch.tokens(rows) if packed else len(rows) * max(batch.tokens([row]) for row in rows)


def _ahead(forwards: Iterator[Computed], n: int) -> Iterator[Computed]:
    """Hand each forward on when `n` more are under way: a device of its own never waits for the host. None is lost when
    a later one fails.
    """
    waiting = deque[Computed]()
    try:
        for computed in forwards:
            waiting.append(computed)
            if len(waiting) > n:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting
