"""The model of a training: loaded in the dtype it is trained in, with its adapter, and written as a checkpoint's
files.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icon_assets.core.errors import IconError
from icon_assets.core.model.fine_tuned import ADAPTER_CONFIG
from icon_assets.core.model.loading import load_model, load_tokenizer
from icon_assets.core.training.cpu_kernels import ATTENTION, adapter_class, register
from icon_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """The model to train; for `lora` with a seeded adapter, in float32 whatever the base is.

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


def _with_adapter(model: "PreTrainedModel", settings: TrainingSettings, on_cpu: bool) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    targets = settings.lora_targets if isinstance(settings.lora_targets, str) else list(settings.lora_targets)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    if on_cpu:
        config._register_custom_module({torch.nn.Linear: adapter_class()})
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise IconError(f"training.lora_targets: {targets!r} ({reason}); name modules of it, or all-linear") from error


def write(model: Any, tokenizer: Any, curve: Sequence[LossPoint], out_dir: Path, base_dir: Path, dtype: str) -> None:
    """Fill `out_dir` with adapter or model, tokenizer and loss curve. No file names a path of this machine."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(out_dir), save_embedding_layers=False)
        (out_dir / "README.md").unlink(missing_ok=True)
        _make_portable(out_dir / ADAPTER_CONFIG, base_dir.name)
    else:
        import torch

        model.to(getattr(torch, dtype)).save_pretrained(str(out_dir), max_shard_size="1TB")
    tokenizer.save_pretrained(str(out_dir))
    points = [dataclasses.asdict(point) for point in curve]
    (out_dir / LOSS_CURVE).write_text(json.dumps(points, indent=1) + "\n", "utf-8")


def _make_portable(config_path: Path, base_name: str) -> None:
    """peft notes the base model's absolute path, and the targets in an order that differs from run to run."""
    config = json.loads(config_path.read_text("utf-8"))
    config["base_model_name_or_path"] = base_name
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """On CUDA: the deterministic kernel wherever there is one. The CPU has no others."""
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
