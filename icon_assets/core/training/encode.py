"""Samples as token ids under the fine-tuning template."""

import polars as pl

from icon_assets.core.encoding.prompts import render_for_training
from icon_assets.core.encoding.tokens import Encoded, encode_training
from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.model.loading import load_tokenizer
from icon_assets.core.model.prepare import ModelRecord
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
