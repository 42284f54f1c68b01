"""The selector learns from directly scored samples to predict contribution, and then ranks the whole pool with one pass
per sample. One ranking serves every fraction, so that selections are nested.

Two kinds: `light` and `lora`. `skill` measures how well they predict.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from icon_assets.core.digests import draw_key
from icon_assets.core.errors import IconError
from icon_assets.core.passes.key import ScoreKey
from icon_assets.core.store.schema import sql_text
from icon_assets.core.store.tables import Store

LEAST_SAMPLES = 20
SELECTOR = "selector"
_CARD = "selector.json"


@dataclass(frozen=True)
class Trained:
    """The result of a training besides files: predictions for samples that the model has not seen, and figures.

    Attributes:
        held_out: sample_id, score.
        in_sample: the same for samples that the model was trained on, where the ranking has no better score for them.
        n_train: samples that the final model was trained on.
        figures: figures of the training, by name.
    """

    held_out: pl.DataFrame
    n_train: int
    figures: Mapping[str, float] = field(default_factory=dict)
    in_sample: pl.DataFrame | None = None


def scored_samples(store: Store, key: ScoreKey, control: str, most: int) -> pl.DataFrame:
    """The directly scored samples to learn from, by id: sample_id, contribution, n_context_tokens; those with the
    lowest ids.

    Raises:
        IconError: too few of them.
    """
    parameters = {"score_key": key.value, "control": control, "most": most}
    rows = store.query(sql_text("scored_samples.sql"), parameters)
    if rows.height < LEAST_SAMPLES:
        raise IconError(
            f"selector: {rows.height} samples are scored under control {control}, {LEAST_SAMPLES} are needed; raise "
            "scoring.direct_share, or materialize sample_scores for more shards"
        )
    return rows


def is_top(values: pl.Series, fraction: float) -> np.ndarray:
    """Whether each value is in the top fraction."""
    order = np.argsort(-values.to_numpy(), kind="stable")
    top = np.zeros(len(order), bool)
    top[order[: ceil(fraction * len(order))]] = True
    return top


def part_of(sample_id: str, seed: int, n_parts: int) -> int:
    """The part, of so many, that a sample falls into, independent of other samples."""
    return int(draw_key(seed, "part", sample_id)[:8], 16) % n_parts


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """A description of the selector, for readers of the directory without the store."""
    (directory / _CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", "utf-8")
