"""Everything that is measured of one model: the multiple-choice tasks and the held-out samples of the settings."""

from collections.abc import Callable
from typing import Any

import polars as pl

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.evaluation.harness import choice_metrics
from icon_assets.core.evaluation.held_out import HeldOutSample, held_out_metrics
from icon_assets.core.evaluation.metric import Metric
from icon_assets.core.inputs.choice_items import read_choice_items
from icon_assets.core.inputs.evaluation_files import choice_files, sample_files
from icon_assets.core.inputs.ingest import ingest, sample_frame
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.model.memory import freed_memory_kept
from icon_assets.workspace import Workspace

Encode = Callable[[pl.DataFrame], list[Encoded]]


def measure(
    workspace: Workspace, model: Any, tokenizer: Any, encode: Encode, *, device: str, warn: Callable[[str], None]
) -> list[Metric]:
    """
    Args:
        encode: rows of samples as token ids, as fine-tuning sees them.
        warn: told of each held-out row that can't be used.
    """
    settings = workspace.settings.evaluation
    tasks = {name: read_choice_items(workspace.input_path(path)) for name, path in choice_files(settings)}
    metrics: list[Metric] = []
    with freed_memory_kept(device):
        if tasks or settings.tasks:
            metrics += choice_metrics(
                model,
                tokenizer,
                tasks,
                names=settings.tasks,
                limit=settings.limit,
                batch_size=settings.batch_size,
                device=device,
            )
        for name, path in sample_files(settings):
            samples = held_out_samples(workspace, path, encode, warn)
            metrics += held_out_metrics(model, samples, name, device=device)
    return metrics


def held_out_samples(
    workspace: Workspace, name: str, encode: Encode, warn: Callable[[str], None]
) -> list[HeldOutSample]:
    """The usable samples of a held-out file."""
    source = SourceFile(name, name, workspace.input_path(name))
    ingested = ingest(source, workspace.settings.pool.max_chars)
    for row in ingested.quarantine:
        warn(f"{name}:{row.row}: left out of the held-out samples: {row.reason}, {row.detail}")
    encoded = encode(sample_frame(source, ingested))
    return [
        HeldOutSample(located.row, located.stratum("all"), sample)
        for located, sample in zip(ingested.samples, encoded, strict=True)
    ]
