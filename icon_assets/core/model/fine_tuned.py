"""What a training left, loaded again: a full model, or an adapter merged into its base model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from icon_assets.core.errors import IconError
from icon_assets.core.model.loading import refuse_device
from icon_assets.core.model.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ADAPTER_CONFIG = "adapter_config.json"


def load(
    model_dir: Path, dtype: str, device: Any, tokenizer_dir: Path | None = None, attention: str | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer of a directory, and of no other place; `attention`: another than the model's own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(model_dir), dtype=getattr(torch, dtype), use_safetensors=True, attn_implementation=attention, **local
    )
    return model.to(torch.device(device)), AutoTokenizer.from_pretrained(str(tokenizer_dir or model_dir), **local)


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

    refuse_device(device)
    if (checkpoint_dir / ADAPTER_CONFIG).is_file():
        with quiet_libraries():
            model, tokenizer = load(base_dir, "float32", "cpu", tokenizer_dir=checkpoint_dir)
            model = _merged(model, checkpoint_dir)
    elif (checkpoint_dir / "config.json").is_file():
        with quiet_libraries():
            model, tokenizer = load(checkpoint_dir, dtype, "cpu")
    else:
        raise IconError(f"{checkpoint_dir}: holds neither an adapter nor a model; materialize the checkpoint again")
    placed: Any = model
    return placed.to(device=torch.device(device), dtype=getattr(torch, dtype)).eval(), tokenizer


def _merged(model: "PreTrainedModel", adapter_dir: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=False).merge_and_unload()
