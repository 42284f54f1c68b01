"""Fine-tuning: token ids and a base model in; an adapter or a full model, and the loss of every step, out.

Data order, adapter and dropout all follow from one seed. A killed training resumes from its last complete state.
Training samples and measurements are determined elsewhere.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.errors import IconError
from icon_assets.core.model.adapter import ADAPTER_CONFIG
from icon_assets.core.model.flops import Work, model_shape
from icon_assets.core.model.loading import refuse_device
from icon_assets.core.model.weights import n_parameters
from icon_assets.core.training.states import identity, last_state, step_of
from icon_assets.core.training.trainable import LOSS_CURVE, LossPoint
from icon_assets.core.training.trainer import OnStep, Task, train
from icon_assets.core.training.workers import train_in_processes
from icon_assets.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training. Tokens and FLOPs are counted over all epochs, `seconds` only over this call."""

    n_samples: int
    n_tokens: int  # forwarded: prompt and response, without padding
    n_response_tokens: int  # tokens with loss
    n_steps: int
    n_truncated: int
    flops: int  # useful ones, forward and backward
    seconds: float
    resumed_from_step: int
    loss_curve: tuple[LossPoint, ...]


def fine_tune(
    base_dir: Path,
    samples: Sequence[Encoded],
    settings: TrainingSettings,
    seed: int,
    *,
    out_dir: Path,
    work_dir: Path,
    dtype: str,
    device: str,
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train the model of `base_dir` on the responses of `samples` and fill `out_dir` with the result's files.

    `out_dir` is an existing empty directory. It gets the adapter (`adapter_model.safetensors`, `adapter_config.json`)
    or the model (`model.safetensors`, `config.json`), the tokenizer, and `loss_curve.json`; `load_fine_tuned` reads it.
    `work_dir` holds the states from which a killed training resumes; the caller may delete it after success. States of
    another training (other samples, settings, seed, base) are discarded. `settings.seeds` is ignored.

    With dtype `bfloat16`, matrices are multiplied in bfloat16 and the trained weights are kept in float32:
    steps at usual learning rates are too small for bfloat16. Equal arguments give equal bits on one CPU
    with as many threads; on CUDA as far as its kernels go. `on_step(step, total_steps, loss)` is called after
    each step.

    Raises:
        IconError: no samples, `cuda` without CUDA, LoRA targets the model lacks, a loss that diverged, or a
            training process that failed.
    """
    started = time.monotonic()
    _refuse(samples, device)
    processes = _n_processes(settings, device)
    settings = settings.model_copy(update={"processes": processes})
    state = last_state(work_dir, identity(base_dir, samples, settings, seed, dtype, device))
    task = Task(base_dir, samples, settings, seed, out_dir, work_dir, state, dtype, device, processes)
    if processes == 1:
        train(task, on_step)
    else:
        train_in_processes(task, on_step)
    return _result(task, time.monotonic() - started)


def _refuse(samples: Sequence[Encoded], device: str) -> None:
    if not samples:
        raise IconError("no samples to train on; widen selection.fraction or add data to the pool")
    if not any(map(_n_targets, samples)):
        raise IconError("no sample has a response token to learn; raise training.max_tokens")
    refuse_device(device)


def _n_processes(settings: TrainingSettings, device: str) -> int:
    import torch

    present = torch.cuda.device_count() if device == "cuda" else 0
    if settings.processes == "auto":
        return min(max(present, 1), settings.batch_size)
    if device == "cuda" and settings.processes > present:
        raise IconError(f"training.processes: {settings.processes}, but {present} CUDA devices are visible; lower it")
    if settings.processes > settings.batch_size:
        raise IconError(
            f"training.processes: {settings.processes} can't share batches of {settings.batch_size}; lower it"
        )
    return settings.processes


def _n_targets(sample: Encoded) -> int:
    """Number of predicted response tokens: all but the first one of a sample without prompt."""
    return len(sample.response_ids) - (0 if sample.prompt_ids else min(1, len(sample.response_ids)))


# Result


def _result(task: Task, seconds: float) -> TrainingResult:
    plan = task.plan
    seen = [(plan.lengths[index], _n_targets(task.samples[index])) for index in plan.seen()]
    work = Work(
        sum(length for length, _ in seen),
        sum(length * (length + 1) // 2 for length, _ in seen),
        sum(targets for _, targets in seen),
    )
    points = json.loads((task.out_dir / LOSS_CURVE).read_text("utf-8"))
    return TrainingResult(
        n_samples=len(task.samples),
        n_tokens=work.tokens,
        n_response_tokens=work.scored,
        n_steps=plan.n_steps,
        n_truncated=sum(sample.truncated for sample in task.samples),
        flops=model_shape(task.base_dir).training_flops(work, _adapter_parameters(task.out_dir)),
        seconds=seconds,
        resumed_from_step=step_of(task.state) if task.state else 0,
        loss_curve=tuple(LossPoint(**point) for point in points),
    )


def _adapter_parameters(checkpoint_dir: Path) -> int | None:
    """Weights of the adapter, None where the whole model was trained."""
    return n_parameters(checkpoint_dir) if (checkpoint_dir / ADAPTER_CONFIG).is_file() else None
