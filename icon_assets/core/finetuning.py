"""Fine-tuning: token ids and a base model in; an adapter or a full model, and the loss of every step, out.

Data order, adapter and dropout all follow from one seed. A training that was killed goes on from its last
complete state. Which samples are trained on is decided elsewhere; how a fine-tuned model is measured too.
"""

import dataclasses
import json
import math
import os
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icon_assets.core.digests import digest, file_digest, lines_digest
from icon_assets.core.errors import IconError
from icon_assets.core.tokens import Encoded
from icon_assets.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnStep = Callable[[int, int, float], None]

_ADAPTER_CONFIG = "adapter_config.json"
_IDENTITY = "training_id"  # in work_dir: what its states were trained on
_MARK = "complete"  # written last into a state: without it the state is half a state
_STATE = re.compile(r"checkpoint-(\d+)")
_NO_LOSS = -100  # label of a token that carries no loss
# What changes how a training is run, not what comes out of it.
_NOT_IDENTITY = {"seeds", "save_every_steps"}


@dataclass(frozen=True)
class LossPoint:
    """One optimizer step: mean loss in nats per response token of its batch, before the step."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. Tokens are counted over all epochs, `seconds` over this call alone."""

    n_samples: int
    n_tokens: int  # forwarded: prompt and response, without padding
    n_response_tokens: int  # those that carried loss
    n_steps: int
    n_truncated: int
    seconds: float
    resumed_from_step: int
    loss_curve: tuple[LossPoint, ...]


@dataclass(frozen=True)
class BatchPlan:
    """Which samples every optimizer step sees: a function of the seed, so that a resumed training agrees.

    Each epoch is shuffled anew. Inside a step, samples stand in order of length: its micro-batches then need
    little padding, and what a step learns from stays a plain random draw.
    """

    lengths: tuple[int, ...]
    batch_size: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def n_steps(self) -> int:
        return math.ceil(self.epochs * self.steps_per_epoch)

    def epoch(self, number: int) -> list[list[int]]:
        """The steps of one epoch, each the indices of its samples."""
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}:{number}").shuffle(order)  # noqa: S311 (no secret)
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [sorted(step, key=lambda index: (-self.lengths[index], index)) for step in steps]

    def seen(self) -> Iterator[int]:
        """Indices of the samples of all steps, in order."""
        for number in range(math.ceil(self.epochs)):
            left = self.n_steps - number * self.steps_per_epoch
            for step in self.epoch(number)[: max(left, 0)]:
                yield from step


class _EpochSampler:
    """Hands a plan's order to a data loader; the trainer tells it the epoch."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.number = 0

    def set_epoch(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return len(self.plan.lengths)

    def __iter__(self) -> Iterator[int]:
        return (index for step in self.plan.epoch(self.number) for index in step)


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

    `out_dir` is an existing empty directory. It gets the adapter (`adapter_model.safetensors`,
    `adapter_config.json`) or the model (`model.safetensors`, `config.json`), the tokenizer, and
    `loss_curve.json`; `load_fine_tuned` reads it. `work_dir` holds the states a killed training goes on from;
    the caller may delete it after success. States of another training (other samples, settings, seed, base)
    are discarded. `settings.seeds` is not looked at.

    With dtype `bfloat16`, matrices are multiplied in bfloat16 and the trained weights are kept in float32:
    steps at usual learning rates are too small for bfloat16. Equal arguments give equal bits on one CPU
    with as many threads; on CUDA as far as its kernels go. `on_step(step, total_steps, loss)` is called after
    each step.

    Raises:
        IconError: no samples, `cuda` without CUDA, LoRA targets the model lacks, or a loss that diverged.
    """
    started = time.monotonic()
    _refuse(samples, device)
    plan = BatchPlan(tuple(map(_length, samples)), settings.batch_size, settings.epochs, seed)
    state = _last_state(work_dir, _identity(base_dir, samples, settings, seed, dtype, device))
    with _quiet(), _deterministic(device):
        model, tokenizer = _load(base_dir, _trained_dtype(settings, dtype), device)
        arguments = _arguments(plan, settings, work_dir, dtype, device)
        trainer = _trainer(_trainable(model, settings, seed), tokenizer, samples, plan, arguments, on_step)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
        curve = tuple(
            LossPoint(entry["step"], entry["loss"], entry["learning_rate"])
            for entry in trainer.state.log_history
            if "loss" in entry
        )
        _write(trainer.model, tokenizer, curve, out_dir, base_dir, dtype)
    seen = [samples[index] for index in plan.seen()]
    return TrainingResult(
        n_samples=len(samples),
        n_tokens=sum(map(_length, seen)),
        n_response_tokens=sum(_n_targets(sample) for sample in seen),
        n_steps=plan.n_steps,
        n_truncated=sum(sample.truncated for sample in samples),
        seconds=time.monotonic() - started,
        resumed_from_step=_step(state) if state else 0,
        loss_curve=curve,
    )


def load_fine_tuned(
    base_dir: Path, checkpoint_dir: Path, dtype: str, device: str
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model (in evaluation mode) and tokenizer of what `fine_tune` wrote to `checkpoint_dir`.

    An adapter is merged into the weights of `base_dir` in float32 and cast afterwards, since a merge in
    bfloat16 rounds much of what was learned away; that takes four bytes of memory per weight. For a full
    model, `base_dir` is not read.

    Raises:
        IconError: `checkpoint_dir` holds neither an adapter nor a model, or `cuda` without CUDA.
    """
    import torch

    _refuse_device(device)
    if (checkpoint_dir / _ADAPTER_CONFIG).is_file():
        with _quiet():
            model, tokenizer = _load(base_dir, "float32", "cpu", tokenizer_dir=checkpoint_dir)
            model = _merged(model, checkpoint_dir)
    elif (checkpoint_dir / "config.json").is_file():
        with _quiet():
            model, tokenizer = _load(checkpoint_dir, dtype, "cpu")
    else:
        raise IconError(f"{checkpoint_dir}: holds neither an adapter nor a model; materialize the checkpoint again")
    placed: Any = model
    return placed.to(device=torch.device(device), dtype=getattr(torch, dtype)).eval(), tokenizer


def _merged(model: "PreTrainedModel", adapter_dir: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=False).merge_and_unload()


def _refuse(samples: Sequence[Encoded], device: str) -> None:
    if not samples:
        raise IconError("no samples to train on; widen selection.fraction or add data to the pool")
    if not any(map(_n_targets, samples)):
        raise IconError("no sample has a response token to learn; raise training.max_tokens")
    _refuse_device(device)


def _refuse_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise IconError("model.device: 'cuda', but no CUDA device is present; set it to 'auto' or 'cpu'")


def _length(sample: Encoded) -> int:
    return len(sample.prompt_ids) + len(sample.response_ids)


def _n_targets(sample: Encoded) -> int:
    """Response tokens that are predicted from something: all, but the first of a sample without prompt."""
    return len(sample.response_ids) - (0 if sample.prompt_ids else min(1, len(sample.response_ids)))


# States


def _identity(
    base_dir: Path, samples: Sequence[Encoded], settings: TrainingSettings, seed: int, dtype: str, device: str
) -> str:
    weights = [[path.name, path.stat().st_size] for path in sorted(base_dir.glob("*.safetensors"))]
    ids = lines_digest(f"{sample.prompt_ids}{sample.response_ids}" for sample in samples)
    choices = settings.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return digest([file_digest(base_dir / "config.json"), weights, ids, choices, seed, dtype, device])


def _last_state(work_dir: Path, identity: str) -> Path | None:
    """The newest complete state of this very training. All others are removed, above all one cut short."""
    work_dir.mkdir(parents=True, exist_ok=True)
    note = work_dir / _IDENTITY
    states = {_step(path): path for path in work_dir.iterdir() if _STATE.fullmatch(path.name)}
    own = note.is_file() and note.read_text("utf-8") == identity
    complete = [step for step, path in states.items() if own and (path / _MARK).is_file()]
    last = states.pop(max(complete)) if complete else None
    for path in states.values():
        shutil.rmtree(path)
    if not own:  # writing it anew could leave it empty, and every state with it
        note.write_text(identity, "utf-8")
    return last


def _step(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def _mark_complete(state: Path) -> None:
    os.sync()  # the mark must not reach the disk before what it vouches for
    (state / _MARK).touch()


# Model


def _trained_dtype(settings: TrainingSettings, dtype: str) -> str:
    """Dtype the model is loaded in: a full training changes these weights, and needs them in float32."""
    return "float32" if settings.method == "full" else dtype


def _load(
    model_dir: Path, dtype: str, device: str, tokenizer_dir: Path | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(model_dir), dtype=getattr(torch, dtype), use_safetensors=True, **local
    )
    return model.to(torch.device(device)), AutoTokenizer.from_pretrained(str(tokenizer_dir or model_dir), **local)


def _trainable(model: "PreTrainedModel", settings: TrainingSettings, seed: int) -> Any:
    """The model, for `lora` with a seeded adapter: peft keeps that in float32 over a bfloat16 base."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    if settings.method == "full":
        return model
    targets = settings.lora_targets if isinstance(settings.lora_targets, str) else list(settings.lora_targets)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise IconError(f"training.lora_targets: {targets!r} ({reason}); name modules of it, or all-linear") from error


# Trainer


def _arguments(plan: BatchPlan, settings: TrainingSettings, work_dir: Path, dtype: str, device: str) -> Any:
    from trl.trainer.sft_config import SFTConfig

    micro = _micro_batch_size(settings)
    # A constant rate has no warm-up under that name.
    scheduler = "constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler
    arguments = SFTConfig(
        output_dir=str(work_dir),
        max_steps=plan.n_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=settings.warmup_fraction,  # below 1: a share of all steps
        seed=plan.seed,
        use_cpu=device == "cpu",
        bf16=dtype == "bfloat16",
        gradient_checkpointing=device == "cuda",  # memory is short there, time on a CPU
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        save_total_limit=2,  # while one is written, the one before it must stay
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a diverged training would look like a calm one
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if device == "cuda":
        arguments._n_gpu = 1  # several visible GPUs would make the trainer ask for DataParallel, which trl refuses
    return arguments


def _micro_batch_size(settings: TrainingSettings) -> int:
    """The largest divisor of `batch_size` within `micro_batch_size`: a step has exactly `batch_size`."""
    largest = min(settings.batch_size, settings.micro_batch_size)
    return next(size for size in range(largest, 0, -1) if settings.batch_size % size == 0)


def _rows(samples: Sequence[Encoded]) -> Any:
    """The samples as trl wants them when it is to prepare nothing: ids, and labels without the prompt."""
    from datasets import Dataset

    ids = [[*sample.prompt_ids, *sample.response_ids] for sample in samples]
    labels = [[_NO_LOSS] * len(sample.prompt_ids) + [*sample.response_ids] for sample in samples]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def _trainer(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Encoded],
    plan: BatchPlan,
    arguments: Any,
    on_step: OnStep | None,
) -> Any:
    from transformers import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    sampler = _EpochSampler(plan)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked: any id does
    trainer = _trainer_class(sampler, arguments)(
        model=model,
        args=arguments,
        train_dataset=_rows(samples),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(padding),
        callbacks=[_callback(sampler, on_step)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    return trainer


def _trainer_class(sampler: _EpochSampler, arguments: Any) -> Any:
    """trl's trainer with our order of samples, marks on complete states, and nothing sent anywhere."""
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
            _mark_complete(Path(arguments.output_dir) / f"checkpoint-{self.state.global_step}")

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if arguments.device.type == "cpu" and not return_outputs:
                return _response_loss(model, inputs, num_items_in_batch)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    return Trainer


def _response_loss(model: Any, inputs: Any, n_targets: Any) -> Any:
    """Negative log-likelihood of the response tokens, over `n_targets`: their count in the whole step.

    The same number as trl's, which without Triton goes through the vocabulary for prompts and padding too.
    """
    from torch.nn.functional import cross_entropy

    targets = inputs["labels"][:, 1:]
    wanted = targets != _NO_LOSS
    columns = wanted.any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        logits_to_keep=columns,
    ).logits
    wanted, targets = wanted[:, columns], targets[:, columns]
    total = cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")
    return total / (wanted.sum() if n_targets is None else n_targets).clamp(min=1)


def _callback(sampler: _EpochSampler, on_step: OnStep | None) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The loader forgets to tell the sampler in the first epoch after a resume.
            sampler.set_epoch(state.global_step // sampler.plan.steps_per_epoch)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The result is written next: a last state would only be resumed into an extra step.
            if state.global_step >= state.max_steps:
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise IconError(f"loss is {logs['loss']} at step {state.global_step}; lower training.learning_rate")
            if on_step is not None:
                on_step(state.global_step, state.max_steps, logs["loss"])

    return Progress()


# Result


def _write(model: Any, tokenizer: Any, curve: tuple[LossPoint, ...], out_dir: Path, base_dir: Path, dtype: str) -> None:
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(out_dir), save_embedding_layers=False)
        (out_dir / "README.md").unlink(missing_ok=True)
        _make_portable(out_dir / _ADAPTER_CONFIG, base_dir.name)
    else:
        import torch

        model.to(getattr(torch, dtype)).save_pretrained(str(out_dir), max_shard_size="1TB")
    tokenizer.save_pretrained(str(out_dir))
    points = [dataclasses.asdict(point) for point in curve]
    (out_dir / "loss_curve.json").write_text(json.dumps(points, indent=1) + "\n", "utf-8")


def _make_portable(config_path: Path, base_name: str) -> None:
    """peft notes the base model's absolute path, and the targets in an order that differs from run to run."""
    config = json.loads(config_path.read_text("utf-8"))
    config["base_model_name_or_path"] = base_name
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


# Surroundings


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warnings about names that are changing between trl and transformers."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _deterministic(device: str) -> Iterator[None]:
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
