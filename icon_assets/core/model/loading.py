"""How a prepared model gets into memory: device, dtype, weights and tokenizer, from its directory in the workspace
only.
"""

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
        IconError: `cuda` is asked for and absent.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise IconError(
            "model.device: cuda is asked for, but torch sees no CUDA device; set model.device to auto or cpu"
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str, device: str) -> str:
    """`bfloat16` where the hardware multiplies it natively (then it is the faster one), else `float32`."""
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def load(directory: Path, dtype: str, device: str) -> LanguageModel:
    """Load a safetensors directory for inference (eval mode, no gradients). dtype and device already chosen."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        tokenizer = load_tokenizer(directory)
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    placed: Any = model  # the stubs do not know `to(device)`
    placed.to(device).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, torch.device(device), leading_ids(tokenizer))


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared model, without its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def refuse_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise IconError("model.device: 'cuda', but no CUDA device is present; set it to 'auto' or 'cpu'")
