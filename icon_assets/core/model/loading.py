"""Loading a prepared model: device, dtype, weights and tokenizer, only from its directory in the workspace."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icon_assets.core.encoding.tokens import leading_ids
from icon_assets.core.errors import IconError
from icon_assets.core.model.native import multiplies_bfloat16
from icon_assets.core.model.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in memory, ready for inference, with its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"
    leading: tuple[int, ...]


def choose_device(wanted: str) -> str:
    """`cuda` or `cpu`.

    Raises:
        IconError: `cuda` is set but absent.
    """
    import torch

    refuse_device(wanted)
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def refuse_device(device: str) -> None:
    """Stop where this device is absent.

    Raises:
        IconError: `cuda` is asked for and absent.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise IconError(
            "model.device: cuda is asked for, but torch sees no CUDA device; set model.device to auto or cpu"
        )


def choose_dtype(wanted: str, device: str) -> str:
    """`bfloat16` where the hardware multiplies it natively, and it is therefore faster, else `float32`."""
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def load(directory: Path, dtype: str, device: str) -> LanguageModel:
    """Load a safetensors directory for inference (eval mode, no gradients). dtype and device must already be chosen."""
    import torch

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, dtype, device).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, torch.device(device), leading_ids(tokenizer))


def load_model(
    directory: Path, dtype: str, device: Any = "cpu", *, attention: str | None = None, labels: int | None = None
) -> Any:
    """The weights of a safetensors directory, and of no other place; no code of it is run.

    Args:
        attention: an implementation other than the model's own.
        labels: with a new head that tells so many labels apart, drawn at random, in place of the model's own.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM
    more: dict[str, Any] = {}
    if labels is not None:
        kind = AutoModelForSequenceClassification
        more["num_labels"] = labels
    if attention is not None:
        more["attn_implementation"] = attention
    with quiet_libraries():
        model = kind.from_pretrained(
            str(directory), dtype=getattr(torch, dtype), use_safetensors=True, **_LOCAL, **more
        )
    return model.to(torch.device(device))


def load_config(directory: Path) -> Any:
    """The sizes of a model: its configuration, of a model of several kinds of input the part that reads text."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(str(directory), **_LOCAL)
    return config.get_text_config()


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared model, without its weights."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        return AutoTokenizer.from_pretrained(str(directory), **_LOCAL)
