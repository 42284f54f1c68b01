"""The key of every stored pair: everything that determines its NLL, and nothing else."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from icon_assets.core.digests import digest
from icon_assets.core.engine.engine import SCORING_VERSION
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.settings import ScoringSettings


@dataclass(frozen=True)
class ScoreKey:
    """Everything that determines a pair's NLL; `value` is its digest and the key of every stored pair."""

    model_digest: str
    dtype: str
    template: str
    separator: str
    max_context_tokens: int
    max_prompt_tokens: int
    max_response_tokens: int
    scoring_version: int = SCORING_VERSION

    @cached_property
    def value(self) -> str:
        return digest(self.settings())

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def score_key(record: ModelRecord, dtype: str, settings: ScoringSettings) -> ScoreKey:
    """The key of this model under these settings. Limits that exceed the model's positions are shrunk to fit."""
    limits = (settings.max_context_tokens, settings.max_prompt_tokens, settings.max_response_tokens)
    reserve = 32  # separator and BOS
    if sum(limits) + reserve > record.max_positions:
        share = (record.max_positions - reserve) / sum(limits)
        limits = tuple(max(1, int(limit * share)) for limit in limits)
    return ScoreKey(record.digest, dtype, settings.template, settings.separator, *limits)
