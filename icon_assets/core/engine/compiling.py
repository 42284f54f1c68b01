"""The kernel and the compiler of this device, and the number of tokens from which compiling pays."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from icon_assets.core.engine.attention import Kernel
from icon_assets.core.model.native import compiler

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


# Number of tokens from which compiling pays. Measured on a CPU with 135M parameters, where it costs 17 s and saves
# 0.15 ms per token; a guess on CUDA.
COMPILED_FROM = {"cpu": 150_000, "cuda": 2_000_000}


def kernel_for(device: "torch.device") -> Kernel:
    """FlexAttention where Triton compiles it into one kernel. Elsewhere it would be slower than plain attention."""
    from torch.utils._triton import has_triton

    return "flex" if device.type == "cuda" and has_triton() else "segments"


def has_compiler(device: "torch.device") -> bool:
    """Whether torch.compile can work here: Triton on CUDA, a C++ compiler on a CPU."""
    from torch.utils._triton import has_triton

    return has_triton() if device.type == "cuda" else compiler() is not None


def compiled_layers(model: "PreTrainedModel") -> dict[Any, Callable[..., Any]]:
    """Compiled forwards of the model's repeated layers. They share one compilation, regardless of the depth."""
    import torch

    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return {layer: torch.compile(layer.forward, dynamic=True) for layer in layers}
