"""One process of a training: trl's trainer over a batch plan, with this project's order, states and loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.errors import IconError
from icon_assets.core.model.memory import freed_memory_kept
from icon_assets.core.model.quiet import quiet_libraries
from icon_assets.core.training.cpu_kernels import cross_entropy
from icon_assets.core.training.states import mark_complete
from icon_assets.core.training.step_plan import BatchPlan, EpochSampler, MicroBatches
from icon_assets.core.training.trainable import LossPoint, deterministic, load_trainable, write
from icon_assets.settings import TrainingSettings

OnStep = Callable[[int, int, float], None]

_NO_LOSS = -100  # label of a token without loss


@dataclass(frozen=True)
class Task:
    """A training, as given to each of its processes. `state`: the state to resume from."""

    base_dir: Path
    samples: Sequence[Encoded]
    settings: TrainingSettings
    seed: int
    out_dir: Path
    work_dir: Path
    state: Path | None
    dtype: str
    device: str
    processes: int

    @property
    def plan(self) -> BatchPlan:
        lengths = tuple(len(sample.prompt_ids) + len(sample.response_ids) for sample in self.samples)
        return BatchPlan(lengths, self.settings.batch_size, self.settings.epochs, self.seed)

    @property
    def micro_batches(self) -> MicroBatches:
        return MicroBatches.of(self.settings.batch_size, self.settings.micro_batch_size, self.processes)


def train(task: Task, on_step: OnStep | None) -> None:
    """Train as this process's part of `task`; the main process calls `on_step` and writes the checkpoint's files."""
    with quiet_libraries(), deterministic(task.device), freed_memory_kept(task.device):
        arguments = _arguments(task)
        model, tokenizer = load_trainable(task.base_dir, task.settings, task.seed, task.dtype, arguments.device)
        trainer = _trainer(task, model, tokenizer, arguments, on_step)
        trainer.train(resume_from_checkpoint=str(task.state) if task.state else None)
        if not trainer.is_world_process_zero():
            return
        curve = [
            LossPoint(entry["step"], entry["loss"], entry["learning_rate"])
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        write(trainer.model, tokenizer, curve, task.out_dir, task.base_dir, task.dtype)


def _arguments(task: Task) -> Any:
    from trl.trainer.sft_config import SFTConfig

    settings = task.settings
    micro = task.micro_batches
    on_cpu = task.device == "cpu"
    # The schedule of that name has no warm-up.
    scheduler = "constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler
    recompute = settings.gradient_checkpointing
    arguments = SFTConfig(
        output_dir=str(task.work_dir),
        max_steps=task.plan.n_steps,
        per_device_train_batch_size=micro.size,
        gradient_accumulation_steps=micro.per_step,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=settings.warmup_fraction,  # below 1: a share of all steps
        seed=task.seed,
        use_cpu=on_cpu,
        # On a CPU, adapters use the bfloat16 base's own dtype: nothing is left to cast.
        bf16=task.dtype == "bfloat16" and not (on_cpu and settings.method == "lora"),
        # auto: only on CUDA, where memory is scarce; on a CPU time is.
        gradient_checkpointing=not on_cpu if recompute == "auto" else recompute,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        save_total_limit=2,  # while one is written, the previous one must stay
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a diverged training would look like a calm one
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if not on_cpu:
        arguments._n_gpu = 1  # several visible GPUs would make the trainer ask for DataParallel, which trl refuses
    arguments.seed += arguments.process_index  # processes must not drop out alike
    return arguments


def _rows(samples: Sequence[Encoded]) -> Any:
    """The samples in trl's format for prepared data: ids, and labels without the prompt. The last one is padding."""
    from datasets import Dataset

    ids = [[*sample.prompt_ids, *sample.response_ids] for sample in samples]
    labels = [[_NO_LOSS] * len(sample.prompt_ids) + [*sample.response_ids] for sample in samples]
    return Dataset.from_dict({"input_ids": [*ids, [0]], "labels": [*labels, [_NO_LOSS]]})


def _trainer(task: Task, model: Any, tokenizer: Any, arguments: Any, on_step: OnStep | None) -> Any:
    from transformers import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    sampler = EpochSampler(task.plan, task.micro_batches)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked: any id does
    trainer = trainer_class(sampler, arguments)(
        model=model,
        args=arguments,
        train_dataset=_rows(task.samples),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(padding, padding_free=task.settings.packing),
        callbacks=[_callback(sampler, on_step)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    return trainer


def trainer_class(sampler: EpochSampler, arguments: Any) -> Any:
    """trl's trainer with this project's order of samples, marks on complete states, and no reporting to services."""
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _send_telemetry(self) -> None:
            pass

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return sampler

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process wrote its part
            if self.is_world_process_zero():
                mark_complete(Path(arguments.output_dir) / f"checkpoint-{self.state.global_step}")

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if arguments.device.type == "cpu" and not return_outputs:
                # Processes average their gradients, but the step is a sum over all of them.
                return _response_loss(model, inputs, num_items_in_batch) * sampler.micro.processes
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    return Trainer


def _response_loss(model: Any, inputs: Any, n_targets: Any) -> Any:
    """Negative log-likelihood of the response tokens, over `n_targets`: their count in the whole step.

    The same number as trl's, which without Triton also computes the vocabulary for prompts and padding.
    """
    inputs = dict(inputs)
    targets = inputs.pop("labels")[:, 1:]
    wanted = targets != _NO_LOSS
    columns = wanted.any(dim=0).nonzero().flatten()
    logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    wanted = wanted[:, columns]
    targets = targets[:, columns]
    logits = logits.flatten(0, 1) if wanted.all() else logits[wanted]
    return cross_entropy(logits, targets[wanted]) / n_targets.clamp(min=1)


def _callback(sampler: EpochSampler, on_step: OnStep | None) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The loader does not set the sampler's epoch in the first epoch after a resume.
            sampler.set_epoch(state.global_step // sampler.plan.steps_per_epoch)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The result is written next: resuming from a last state would only add an extra step.
            if state.global_step >= state.max_steps:
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise IconError(f"loss is {logs['loss']} at step {state.global_step}; lower training.learning_rate")
            if on_step is not None and state.is_world_process_zero:
                on_step(state.global_step, state.max_steps, logs["loss"])

    return Progress()
