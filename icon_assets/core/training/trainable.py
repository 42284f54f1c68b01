"""The model of a training: loaded in its training dtype, with its adapter, and written as a checkpoint's files."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icon_assets.core.model.adapter import save_adapter, with_new_adapter
from icon_assets.core.model.loading import load_model, load_tokenizer
from icon_assets.core.training.cpu_kernels import ATTENTION, adapter_class, register
from icon_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOSS_CURVE = "loss_curve.json"


@dataclass(frozen=True)
class LossPoint:
    """One optimizer step: mean loss in nats per response token of its batch, before the step."""

    step: int
    loss: float
    learning_rate: float


def load_trainable(
    base_dir: Path, settings: TrainingSettings, seed: int, dtype: str, device: Any
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """The model to train; for `lora` with a seeded adapter, in float32 regardless of the base.

    A full training changes the model's own weights, and needs them in float32.
    """
    from transformers import set_seed

    on_cpu = device.type == "cpu"
    if on_cpu and settings.packing:
        register()
    attention = ATTENTION if on_cpu and settings.packing else None
    full = settings.method == "full"
    model = load_model(base_dir, "float32" if full else dtype, device, attention=attention)
    tokenizer = load_tokenizer(base_dir)
    set_seed(seed)
    return (model if full else _with_adapter(model, settings, on_cpu)), tokenizer


def _with_adapter(model: Any, settings: TrainingSettings, on_cpu: bool) -> Any:
    import torch

    targets = settings.lora_targets
    return with_new_adapter(
        model,
        "CAUSAL_LM",
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=targets if isinstance(targets, str) else list(targets),  # an error shows them as a file has them
        setting="training.lora_targets",
        classes={torch.nn.Linear: adapter_class()} if on_cpu else None,
    )


def write(model: Any, tokenizer: Any, curve: Sequence[LossPoint], out_dir: Path, base_dir: Path, dtype: str) -> None:
    """Fill `out_dir` with adapter or model, tokenizer and loss curve. No file contains a path of this machine."""
    if hasattr(model, "peft_config"):
        save_adapter(model, out_dir, base_dir.name)
    else:
        import torch

        model.to(getattr(torch, dtype)).save_pretrained(str(out_dir), max_shard_size="1TB")
    tokenizer.save_pretrained(str(out_dir))
    points = [dataclasses.asdict(point) for point in curve]
    (out_dir / LOSS_CURVE).write_text(json.dumps(points, indent=1) + "\n", "utf-8")


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """On CUDA, use deterministic kernels where they exist. On a CPU all kernels are deterministic."""
    import torch

    if device != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
