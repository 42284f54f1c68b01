"""Table rows as token ids for a forward, under one score_key: probes, candidates as contexts, control contexts."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from icon_assets.core.encoding.control_contexts import (
    ControlContext,
    no_context,
    plain_vocabulary,
    random_chars,
    random_tokens,
)
from icon_assets.core.encoding.prompts import Rendered, render_for_scoring
from icon_assets.core.encoding.tokens import Context, Encoded, encode_context, encode_probe, leading_ids
from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.store.tables import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Renders with the key's template, tokenizes, cuts to the key's limits."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", key: ScoreKey) -> None:
        self._tokenizer = tokenizer
        self._key = key

    @cached_property
    def separator(self) -> tuple[int, ...]:
        """The ids between a context and a probe."""
        ids = self._tokenizer(self._key.separator, add_special_tokens=False, split_special_tokens=True).input_ids
        return tuple(ids)

    @cached_property
    def leading(self) -> tuple[int, ...]:
        """The ids that open every sequence: a BOS, or nothing."""
        return leading_ids(self._tokenizer)

    def probe(self, row: Mapping[str, Any]) -> Encoded:
        limits = self._key.max_prompt_tokens, self._key.max_response_tokens
        return encode_probe(self._tokenizer, self._render(row), *limits)

    def context(self, row: Mapping[str, Any]) -> Context:
        return encode_context(self._tokenizer, self._render(row), self._key.max_context_tokens)

    def control(self, kind: str, seed: int, length: int) -> ControlContext:
        """`length` in the control's own unit: tokens or characters."""
        if kind == "none":
            return no_context()
        if kind == "random_tokens":
            return random_tokens(self._vocabulary, seed, length)
        return random_chars(self._tokenizer, seed, length, self._key.max_context_tokens)

    def _render(self, row: Mapping[str, Any]) -> Rendered:
        template: Any = self._key.template
        return render_for_scoring(sample_of(row), template, self._tokenizer)

    @cached_property
    def _vocabulary(self) -> list[int]:
        return plain_vocabulary(self._tokenizer)


def pool_rows(store: Store, sample_ids: Sequence[str]) -> list[dict[str, Any]]:
    """One row of the pool for each of these samples that exists, regardless of how many files contain it."""
    return store.query(
        "SELECT DISTINCT ON (sample_id) * FROM delta.pool WHERE sample_id IN (SELECT unnest($ids::VARCHAR[]))",
        {"ids": list(sample_ids)},
    ).to_dicts()
