"""The scoring engine: NLL of probes behind contexts, many pairs per forward, through the unchanged Hugging Face model.

A context is computed once and all its probes follow in the same forward: `[context][probe 1][probe 2]...`, the
positions of each probe continuing after the context, each probe attending to the context and itself only. That is done
by an attention function registered with transformers, so that any decoder with its attention interface works. No
padding; vocabulary logits only at response positions; log-softmax in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icon_assets.core.language_model import LanguageModel
from icon_assets.core.packing import Row, plan_forwards
from icon_assets.core.tokens import Encoded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ATTENTION = "icon_packed"
SCORING_VERSION = 1
# Largest difference per token, in nats, at which packed and plain forwards count as the same arithmetic.
_AGREEMENT_FLOAT32, _AGREEMENT_BFLOAT16 = 1e-3, 0.3
_LOGIT_ROWS = 32  # rows of float32 logits at a time: few enough to stay in the cache


class _NotPackable(Exception):
    """The model's attention asks for something the packed attention does not do."""


@dataclass(frozen=True)
class Pair:
    """One result: summed NLL in nats of the probe's `n_tokens` response tokens behind the context."""

    context: int
    probe: int
    nll_sum: float
    n_tokens: int


@dataclass
class Meter:
    """What the engine has spent: forwards, tokens fed to the model, and pairs scored."""

    forwards: int = 0
    tokens: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class Segment:
    """A probe inside a packed forward: token range [start, stop), its context's range, and its scored positions."""

    context_start: int
    context_stop: int
    start: int
    stop: int


@dataclass
class Layout:
    """Where contexts and probes lie in one packed forward; handed to the attention function."""

    contexts: list[tuple[int, int]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    masks: "dict[tuple[int, int], torch.Tensor]" = field(default_factory=dict)  # shared by all layers

    @property
    def longest(self) -> int:
        """Tokens of the longest context with its probe."""
        return max(s.context_stop - s.context_start + s.stop - s.start for s in self.segments)


@dataclass
class _Packed:
    """One forward's input: ids, positions, the layout, and for each pair its scored rows and targets."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    layout: Layout = field(default_factory=Layout)


class ScoringEngine:
    """NLL of probes behind contexts on one model.

    Attributes:
        packed: whether pairs share forwards. A model whose attention can't be packed (no attention interface, a window
            shorter than the text, soft-capping) is scored one pair per forward: slower, the same figures.
        meter: what was spent.
    """

    def __init__(self, language_model: LanguageModel, tokens_per_forward: int) -> None:
        self._model = language_model.model
        self._device = language_model.device
        self._leading = language_model.leading
        self._budget = tokens_per_forward
        self.meter = Meter()
        self.packed = self._packing_is_exact()
        self.meter = Meter()

    def score(
        self, contexts: Sequence[Sequence[int]], probes: Sequence[Encoded], wanted: Sequence[Sequence[int]]
    ) -> Iterator[list[Pair]]:
        """Score `wanted[i]` (probe indices) behind `contexts[i]`, a batch of pairs per forward.

        Args:
            contexts: token ids before the probe's prompt, the separator included; empty for no context.
            probes: prompt and response ids; every response token is scored, the first one too.
            wanted: per context, the indices of the probes to score.

        Yields:
            The pairs of one forward. NLL in nats, summed over the response tokens, accumulated in float32 or wider.
        """
        prefixes = [[*self._leading, *context] for context in contexts]
        # The last response token is a target only, never an input.
        lengths = [len(probe.prompt_ids) + len(probe.response_ids) - 1 for probe in probes]
        for rows in plan_forwards([len(prefix) for prefix in prefixes], lengths, wanted, self._budget):
            if self.packed:
                try:
                    yield self._forward(_pack(rows, prefixes, probes), packed_attention=True)
                    continue
                except _NotPackable:  # a window shorter than this text: the rest of it pair by pair
                    pass
            for row in rows:
                for probe in row.probes:
                    yield self._forward(_pack([Row(row.context, (probe,))], prefixes, probes), packed_attention=False)

    def _forward(self, packed: _Packed, *, packed_attention: bool) -> list[Pair]:
        """One forward. Without packed attention it must hold a single pair, and the model runs as it came."""
        import torch

        layout = {"packed_layout": packed.layout} if packed_attention else {}
        with torch.inference_mode(), _attention(self._model, ATTENTION if packed_attention else None):
            logits = self._model(
                input_ids=torch.tensor([packed.ids], device=self._device),
                position_ids=torch.tensor([packed.positions], device=self._device),
                logits_to_keep=torch.tensor(packed.scored, device=self._device),
                use_cache=False,
                **layout,
            ).logits[0]
            nll = _token_nll(logits, torch.tensor(packed.targets, device=self._device)).double().cpu()
        sums = [part.sum().item() for part in nll.split([n for _, _, n in packed.pairs])]
        self.meter.forwards += 1
        self.meter.tokens += len(packed.ids)
        self.meter.pairs += len(sums)
        return [Pair(c, p, total, n) for (c, p, n), total in zip(packed.pairs, sums, strict=True)]

    def _packing_is_exact(self) -> bool:
        """Try it: the same small pairs packed and one by one must agree, or this model can't be packed."""
        from transformers import AttentionInterface

        if not self._model._can_set_attn_implementation():
            return False
        AttentionInterface.register(ATTENTION, packed_attention)
        probes = [Encoded(tuple(range(3, 9)), tuple(range(9, 14))), Encoded(tuple(range(14, 17)), (20,))]
        rows = [Row(0, (0, 1)), Row(1, (0, 1))]
        prefixes = [[*self._leading, *range(21, 32)], [*self._leading, *range(32, 36)]]
        try:
            together = self._forward(_pack(rows, prefixes, probes), packed_attention=True)
        except (_NotPackable, TypeError):  # TypeError: a model that does not hand the layout on
            return False
        alone = [
            pair
            for row in rows
            for probe in row.probes
            for pair in self._forward(_pack([Row(row.context, (probe,))], prefixes, probes), packed_attention=False)
        ]
        exact = next(self._model.parameters()).dtype.itemsize >= 4
        limit = _AGREEMENT_FLOAT32 if exact else _AGREEMENT_BFLOAT16
        return all(abs(a.nll_sum - b.nll_sum) <= limit * a.n_tokens for a, b in zip(together, alone, strict=True))


def _pack(rows: Sequence[Row], prefixes: Sequence[Sequence[int]], probes: Sequence[Encoded]) -> _Packed:
    packed = _Packed()
    for row in rows:
        prefix = prefixes[row.context]
        context_start = len(packed.ids)
        packed.ids.extend(prefix)
        packed.positions.extend(range(len(prefix)))
        context_stop = len(packed.ids)
        if prefix:
            packed.layout.contexts.append((context_start, context_stop))
        for index in row.probes:
            _add_probe(packed, row.context, index, probes[index], context_start, context_stop)
    return packed


def _add_probe(
    packed: _Packed, context: int, index: int, probe: Encoded, context_start: int, context_stop: int
) -> None:
    start = len(packed.ids)
    ids = [*probe.prompt_ids, *probe.response_ids[:-1]]
    packed.ids.extend(ids)
    packed.positions.extend(range(context_stop - context_start, context_stop - context_start + len(ids)))
    packed.layout.segments.append(Segment(context_start, context_stop, start, start + len(ids)))
    # The token before each response token predicts it; the first one is predicted by the end of the prompt.
    first = start + len(probe.prompt_ids) - 1
    packed.scored.extend(range(first, first + len(probe.response_ids)))
    packed.targets.extend(probe.response_ids)
    packed.pairs.append((context, index, len(probe.response_ids)))


@contextmanager
def _attention(model: "PreTrainedModel", name: str | None) -> Iterator[None]:
    """Run the model with the named attention function; afterwards it has its own again, for whoever uses it next."""
    own: Any = model.config._attn_implementation
    if name is not None:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name is not None:
            model.set_attn_implementation(own)


def _token_nll(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """NLL in nats per row of `logits` [n, vocabulary], in float32, a few rows at a time."""
    import torch

    parts = []
    for rows, wanted in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True):
        parts.append(torch.nn.functional.cross_entropy(rows.float(), wanted, reduction="none"))
    return torch.cat(parts)


def packed_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    *,
    packed_layout: Layout,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention of one packed forward: contexts causally; each probe to its context and, causally, to itself.

    Args:
        query: [1, heads, tokens, head size]; key and value: [1, key heads, tokens, head size].
        packed_layout: where contexts and probes lie.

    Returns:
        [1, tokens, heads, head size], and None for the weights, as transformers expects.

    Raises:
        _NotPackable: the layer soft-caps its logits, or its window is shorter than the longest text.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if softcap is not None or (sliding_window is not None and sliding_window < packed_layout.longest):
        raise _NotPackable

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = torch.empty_like(query)
    for start, stop in packed_layout.contexts:
        part = slice(start, stop)
        out[:, :, part] = scaled_dot_product_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], is_causal=True, scale=scaling
        )
    for segment in packed_layout.segments:
        own = slice(segment.start, segment.stop)
        context = slice(segment.context_start, segment.context_stop)
        keys = torch.cat([key[:, :, context], key[:, :, own]], dim=2)
        values = torch.cat([value[:, :, context], value[:, :, own]], dim=2)
        out[:, :, own] = scaled_dot_product_attention(
            query[:, :, own], keys, values, attn_mask=_mask(packed_layout, segment, query), scale=scaling
        )
    return out.transpose(1, 2).contiguous(), None


def _mask(layout: Layout, segment: Segment, query: "torch.Tensor") -> "torch.Tensor":
    """Additive mask [n_own, n_context + n_own]: all of the context, and the own tokens up to the query's."""
    import torch

    size = (segment.stop - segment.start, segment.context_stop - segment.context_start)
    if size not in layout.masks:
        hidden = torch.full((size[0], sum(size)), float("-inf"), dtype=query.dtype, device=query.device)
        layout.masks[size] = hidden.triu(size[1] + 1)
    return layout.masks[size]
