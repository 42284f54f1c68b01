"""Which pairs may share a forward, by the model's configuration and by a trial on the model itself.

A shared forward must give the figures of a plain forward per pair. Some layers use more than attention: windows that
only the mask contains, rotary frequencies that depend on the longest text, convolutions that cross from one text to the
next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.engine.attention import NotPackable
from icon_assets.core.engine.forward import Batch
from icon_assets.core.engine.packing import Row

PACKED = [Row(0, (0, 1)), Row(1, (0, 1))]
PAIRS = [Row(0, (0,)), Row(0, (1,)), Row(1, (0,)), Row(1, (1,))]
_CONTEXTS = [tuple(range(21, 32)), tuple(range(32, 36))]
# Responses of several tokens: on a single one, bfloat16 alone can differ by up to 0.5 nats.
_PROBES = [
    Encoded(tuple(range(3, 9)), (9, 24, 10, 31, 11, 28, 12, 35, 13, 22, 29, 15)),
    Encoded(tuple(range(14, 17)), (20, 33, 18, 27, 16, 30, 19, 25, 36, 23, 14, 32)),
]
# Largest difference per token, in nats, at which two ways to compute a pair count as the same arithmetic. With these
# texts and the bundled model in bfloat16, correct ways differ by up to 0.12, and a wrong context by 0.2 to 14.
_AGREEMENT_FLOAT32 = 1e-3
_AGREEMENT_BFLOAT16 = 0.25

Figures = list[float]  # summed NLL in nats of the pairs of some rows, in order


def window(config: Any) -> float:
    """Number of tokens up to which every layer of the model sees the whole text."""
    kinds = set(getattr(config, "layer_types", None) or ["unknown"])
    if kinds == {"full_attention"}:
        return inf
    return min(getattr(config, name, None) or inf for name in ("sliding_window", "attention_chunk_size"))


def rotary_limit(config: Any) -> float:
    """Number of tokens beyond which a text changes the rotary frequencies of all texts in its forward."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    limits = [inf]
    for each in kinds:
        if each.get("rope_type") == "longrope":
            limits.append(each["original_max_position_embeddings"])
        elif "dynamic" in each.get("rope_type", ""):
            limits.append(config.max_position_embeddings)
    return min(limits)


@dataclass(frozen=True)
class Trial:
    """A few small pairs for comparing ways of computing.

    Attributes:
        leading: ids before every context.
        exact: whether the model computes in float32 or wider.
        experts: whether the model has experts. These share products of varying sizes, so that last digits vary.
    """

    leading: Sequence[int]
    exact: bool
    experts: bool

    def passed(
        self,
        forward: Callable[[Batch, list[Row]], Figures],
        rows: list[Row],
        plain: Callable[[Batch, Row], float],
        times: int,
    ) -> bool:
        """Whether `forward` gives the figures of plain forwards for these rows, pair by pair. The texts are `times` as
        long."""
        contexts = [[*self.leading, *context * times] for context in _CONTEXTS]
        batch = Batch(contexts, [Encoded(p.prompt_ids * times, p.response_ids) for p in _PROBES])
        try:
            tried = forward(batch, rows)
            if not (self.experts or _apart(batch, forward, rows, tried)):
                return False
            wanted = [plain(batch, pair) for pair in PAIRS]
        except (NotPackable, TypeError):  # TypeError: a model that does not pass the layout on
            return False
        limit = _AGREEMENT_FLOAT32 if self.exact else _AGREEMENT_BFLOAT16
        tokens = [len(batch.probes[pair.probes[0]].response_ids) for pair in PAIRS]
        return all(abs(a - b) <= limit * n for a, b, n in zip(tried, wanted, tokens, strict=True))


def _apart(batch: Batch, forward: Callable[[Batch, list[Row]], Figures], rows: list[Row], tried: Figures) -> bool:
    """Whether the figures of other probes stay equal, bit for bit, when the first one is changed. A layer other than
    attention, such as a convolution, could leak from one probe into the next, by less than the tolerance of bfloat16.
    """
    first = batch.probes[0]
    other = Encoded(tuple(i + 1 for i in first.prompt_ids), tuple(i + 1 for i in first.response_ids))

    def stayed(others: Batch) -> bool:
        pairs = zip(PAIRS, tried, forward(others, rows), strict=True)
        return all(before == now for pair, before, now in pairs if pair.probes != (0,))

    # Where sums differ from run to run anyway, the test says nothing.
    return stayed(replace(batch, probes=[other, *batch.probes[1:]])) or not stayed(batch)
