"""Samples as token ids under the fine-tuning template."""

from functools import lru_cache

import polars as pl

from icon_assets.core.encoding.prompts import render_for_training
from icon_assets.core.encoding.tokens import Encoded, encode_training
from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.model.loading import load_tokenizer
from icon_assets.core.model.prepare import ModelRecord
from icon_assets.core.selection.candidates import TOKENS
from icon_assets.core.store.tables import Store
from icon_assets.settings import TrainingSettings


def encode_samples(record: ModelRecord, rows: pl.DataFrame, settings: TrainingSettings) -> list[Encoded]:
    """Table rows as token ids under the fine-tuning template, in the rows' order, none longer than the model's
    positions."""
    tokenizer = load_tokenizer(record.directory)
    limit = min(settings.max_tokens, record.max_positions)
    return [
        encode_training(tokenizer, render_for_training(sample_of(row), settings.template, tokenizer), limit)
        for row in rows.iter_rows(named=True)
    ]


@lru_cache(maxsize=1)
def training_tokens(
    store: Store, record: ModelRecord, settings_json: str, shards: tuple[tuple[str, str], ...]
) -> pl.DataFrame:
    """Tokens that each sample has in training, once per epoch: sample_id, n_training_tokens. Counted once for all arms
    of a run.

    Args:
        settings_json: of `training`.
        shards: of the pool, each with the digest of its samples: others are counted again.
    """
    settings = TrainingSettings.model_validate_json(settings_json)
    counted = list[pl.DataFrame]()
    for shard, _ in shards:
        rows = store.query("FROM delta.pool WHERE shard = $shard", {"shard": shard})
        lengths = [len(each.prompt_ids) + len(each.response_ids) for each in encode_samples(record, rows, settings)]
        counted.append(rows.select("sample_id").with_columns(pl.Series(TOKENS, lengths, pl.Int64)))
    return pl.concat(counted).unique("sample_id", keep="first", maintain_order=True)
