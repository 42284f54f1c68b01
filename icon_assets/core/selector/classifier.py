"""The paper's selector (arXiv 2505.05327): the base model with LoRA and a head that separates the best samples from the
rest.

Token ids and labels in, P(label 1) out. The head is trained with the adapter, and both classes have the same weight,
even if few samples are labelled 1. Labels and skill are determined elsewhere."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icon_assets.core.errors import IconError
from icon_assets.core.model.adapter import save_adapter, with_new_adapter, with_saved_adapter
from icon_assets.core.model.batches import by_length, padded
from icon_assets.core.model.flops import Work, context_work
from icon_assets.core.model.loading import load_model, load_tokenizer
from icon_assets.core.model.memory import freed_memory_kept
from icon_assets.settings import ClassifierSettings

if TYPE_CHECKING:
    import torch

OnEpoch = Callable[[int, float], None]
_LONGEST_STEP = 1.0  # gradients are clipped to this norm
_TOKENS = 8192  # padded tokens per forward without training


@dataclass
class Passes:
    """The work of a classifier: texts in forwards, and those with a backward."""

    texts: int = 0
    forwards: int = 0
    learned: Work = field(default_factory=Work)
    read: Work = field(default_factory=Work)


class Classifier:
    """A base model with an adapter and a head, in memory. `passes`: its work so far."""

    def __init__(self, model: Any, dtype: str, device: str) -> None:
        self.model = model
        self._dtype = dtype
        self._device = device
        self.passes = Passes()

    @property
    def adapter_parameters(self) -> int:
        """Weights of the adapter."""
        return sum(p.numel() for name, p in self.model.named_parameters() if "lora_" in name)

    @classmethod
    def new(cls, base_dir: Path, settings: ClassifierSettings, seed: int, dtype: str, device: str) -> "Classifier":
        """The base model with a fresh adapter and head.

        Raises:
            IconError: `selector.lora.targets` names no module of the model.
        """
        base = _base(base_dir, seed, dtype)
        model = with_new_adapter(
            base,
            "SEQ_CLS",
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            setting="selector.lora.targets",
            trained_too=_head(base),
        )
        for parameter in model.parameters():
            if parameter.requires_grad:  # steps at usual rates are too small for bfloat16
                parameter.data = parameter.data.float()
        return cls(model.to(device), dtype, device)

    @classmethod
    def load(cls, base_dir: Path, directory: Path, dtype: str, device: str) -> "Classifier":
        """What `save` wrote."""
        model = with_saved_adapter(_base(base_dir, 0, dtype), directory)
        return cls(model.to(device).eval(), dtype, device)

    def save(self, directory: Path, base_name: str) -> None:
        """Adapter and head as safetensors, with no path of this machine."""
        save_adapter(self.model, directory, base_name)

    def train(
        self,
        texts: Sequence[Sequence[int]],
        labels: np.ndarray,
        others: Sequence[Sequence[int]],
        other_labels: np.ndarray,
        settings: ClassifierSettings,
        seed: int,
        on_epoch: OnEpoch,
    ) -> list[float]:
        """Train, and keep the epoch with the highest average precision on the other texts. Returns the average
        precision of each epoch. As the best of several it is too optimistic, so measure the skill on further texts."""
        from sklearn.metrics import average_precision_score

        weights = np.where(labels, len(labels) / (2 * labels.sum()), len(labels) / (2 * (~labels).sum()))
        step = self._stepper(settings, -(-len(texts) // settings.batch_size))
        precision = list[float]()
        best = dict[str, Any]()
        for epoch in range(settings.epochs):
            self.model.train()
            with freed_memory_kept(self._device):
                for batch in _batches(len(texts), settings.batch_size, f"{seed}:{epoch}"):
                    step([texts[i] for i in batch], labels[batch], weights[batch])
            precision.append(float(average_precision_score(other_labels, self.predict(others))))
            on_epoch(epoch + 1, precision[-1])
            if precision[-1] >= max(precision):
                best = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        self.model.load_state_dict(best, strict=False)
        return precision

    def predict(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """P(label 1) of each text."""
        import torch

        self.model.eval()
        found = np.zeros(len(texts))
        with torch.inference_mode(), freed_memory_kept(self._device):
            for group in by_length([len(text) for text in texts], tokens=_TOKENS, shortest_first=True):
                together = [texts[index] for index in group]
                logits = self._logits(together).double()
                self.passes.read += _work(together)
                found[group] = logits.softmax(-1)[:, 1].cpu().numpy()
        if not np.isfinite(found).all():
            raise IconError("selector: the classifier diverged; lower selector.lora.learning_rate")
        return found

    def _stepper(self, settings: ClassifierSettings, steps_per_epoch: int) -> Callable[..., None]:
        """A function that takes one optimizer step on a batch, at the scheduled rate."""
        import torch
        from transformers import get_cosine_schedule_with_warmup

        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.0)
        total = settings.epochs * steps_per_epoch
        rate = get_cosine_schedule_with_warmup(optimizer, round(settings.warmup_fraction * total), total)
        if self._device == "cuda":  # memory is short there, time on a CPU
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable()

        def step(texts: Sequence[Sequence[int]], labels: np.ndarray, weights: np.ndarray) -> None:
            for part in by_length([len(text) for text in texts], texts=settings.micro_batch_size):
                together = [texts[i] for i in part]
                wanted = torch.tensor(labels[part], device=self._device).long()
                loss = torch.nn.functional.cross_entropy(self._logits(together), wanted, reduction="none")
                (loss @ torch.tensor(weights[part], device=self._device).float() / float(weights.sum())).backward()
                self.passes.learned += _work(together)
            torch.nn.utils.clip_grad_norm_(trained, _LONGEST_STEP)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()

        return step

    def _logits(self, texts: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Logits of both labels, in float32. The texts contain no special tokens, so that padding is recognizable."""
        import torch

        ids, mask = (torch.tensor(each, device=self._device) for each in padded(texts, self.model.config.pad_token_id))
        self.passes.texts += len(texts)
        self.passes.forwards += 1
        with self._mixed():
            return self.model(input_ids=ids, attention_mask=mask).logits.float()

    def _mixed(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self._device, torch.bfloat16, enabled=self._dtype == "bfloat16")


def _base(base_dir: Path, seed: int, dtype: str) -> Any:
    """The base model with a head of two labels, seeded, and a token for padding."""
    from transformers import set_seed

    set_seed(seed % 2**32)  # numpy takes no more
    model = load_model(base_dir, dtype, labels=2)
    tokenizer = load_tokenizer(base_dir)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    model.config.pad_token_id = next(token for token in known if token is not None)
    return model


def _work(texts: Sequence[Sequence[int]]) -> Work:
    """Work of one forward of each text. The head of two labels is not counted."""
    return sum((context_work(len(text)) for text in texts), Work())


def _head(model: Any) -> list[str]:
    """Modules that the base model does not have."""
    return [name for name, _ in model.named_children() if name != model.base_model_prefix]


def _batches(n: int, size: int, seed: str) -> Iterator[list[int]]:
    order = list(range(n))
    random.Random(seed).shuffle(order)  # noqa: S311  (no secret)
    for start in range(0, n, size):
        yield order[start : start + size]
