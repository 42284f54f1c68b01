"""Loading a fine-tuned model: a full model, or an adapter merged into its base model."""

from pathlib import Path
from typing import TYPE_CHECKING

from icon_assets.core.errors import IconError
from icon_assets.core.model.adapter import ADAPTER_CONFIG, with_saved_adapter
from icon_assets.core.model.loading import load_model, load_tokenizer, refuse_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_fine_tuned(
    base_dir: Path, checkpoint_dir: Path, dtype: str, device: str
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model (in evaluation mode) and tokenizer that `fine_tune` wrote to `checkpoint_dir`.

    An adapter is merged into the weights of `base_dir` in float32 and cast afterwards, because a merge in bfloat16
    would round away much of the training. That takes four bytes of memory per weight. For a full model, `base_dir` is
    not read.

    Raises:
        IconError: `checkpoint_dir` holds neither an adapter nor a model, or `cuda` without CUDA.
    """
    import torch

    refuse_device(device)
    if (checkpoint_dir / ADAPTER_CONFIG).is_file():
        model = with_saved_adapter(load_model(base_dir, "float32"), checkpoint_dir).merge_and_unload()
    elif (checkpoint_dir / "config.json").is_file():
        model = load_model(checkpoint_dir, dtype)
    else:
        raise IconError(f"{checkpoint_dir}: holds neither an adapter nor a model; materialize the checkpoint again")
    placed = model.to(device=torch.device(device), dtype=getattr(torch, dtype)).eval()
    return placed, load_tokenizer(checkpoint_dir)
