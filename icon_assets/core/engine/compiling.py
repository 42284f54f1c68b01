"""Which kernel the packed attention of a model runs on, whether its layers are compiled, and what happens when that
fails.

Compiling fuses everything elementwise; on a CPU the fused attention is built, too, where it can compute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from icon_assets.core.engine.attention import ATTENTION, Kernel, can_fuse
from icon_assets.core.model.loading import LanguageModel
from icon_assets.core.model.native import compiler

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


T = TypeVar("T")
# Tokens to compute from which compiling pays for itself: measured on a CPU with 135M parameters, where it costs 17 s
# and saves 0.15 ms per token; on CUDA a guess.
COMPILED_FROM = {"cpu": 150_000, "cuda": 2_000_000}


class Compiling:
    """How the packed forwards of one model are computed.

    Attributes:
        kernel: of the packed attention.
        layers: compiled forwards by layer; empty where the layers are as they came.
    """

    def __init__(self, language_model: LanguageModel, kernel: Kernel | None) -> None:
        """`kernel`: None for those that suit the device, a faster one once it pays."""
        self._model = language_model.model
        self._device = language_model.device
        self._may_fuse = kernel is None
        self._tried = False
        self.kernel: Kernel = kernel or _kernel_for(self._device)
        self.layers: dict[Any, Callable[..., Any]] = {}

    def pays(self, tokens: int) -> bool:
        """Whether `tokens` to compute are enough for a trial that has not been made yet."""
        return not self._tried and tokens >= COMPILED_FROM[self._device.type]

    def try_out(self, agrees: Callable[[], bool]) -> None:
        """Take the fused kernel and compiled layers, where this machine can have them and they give the same.

        Args:
            agrees: whether packed forwards as they are computed now give the model's own figures.
        """
        self._tried = True
        if _has_compiler(self._device):
            self.fuse(agrees)
            self.layers = _compiled_layers(self._model)
            if not agrees():
                self.layers = {}

    def fuse(self, agrees: Callable[[], bool]) -> None:
        """Take the fused kernel for the plain one, where it can be had and gives the same."""
        dtype = next(self._model.parameters()).dtype
        if self._may_fuse and self.kernel == "segments" and can_fuse(dtype, self._device):
            self.kernel = "fused"
            if not agrees():
                self.kernel = "segments"

    def giving_way(self, forward: Callable[[], T]) -> T:
        """What `forward` gives. What can't be compiled, now or for a shape that comes up later, gives way."""
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        while True:
            try:
                return forward()
            except (TorchDynamoException, InductorError):
                if self.layers:
                    self.layers = {}
                elif self.kernel == "flex":
                    self.kernel = "segments"
                else:
                    raise

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Run the model with the packed attention and compiled layers; afterwards it is again as it came."""
        config: Any = self._model.config
        own = config._attn_implementation
        self._model.set_attn_implementation(ATTENTION)
        for layer, forward in self.layers.items():
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward
            self._model.set_attn_implementation(own)


def _kernel_for(device: "torch.device") -> Kernel:
    """FlexAttention where Triton compiles it into one kernel; it would be slower than plain attention elsewhere."""
    from torch.utils._triton import has_triton

    return "flex" if device.type == "cuda" and has_triton() else "segments"


def _has_compiler(device: "torch.device") -> bool:
    """Whether torch.compile can work here: Triton on CUDA, a C++ compiler on a CPU."""
    from torch.utils._triton import has_triton

    return has_triton() if device.type == "cuda" else compiler() is not None


def _compiled_layers(model: "PreTrainedModel") -> dict[Any, Callable[..., Any]]:
    """Compiled forwards of the model's repeated layers: they share one compilation, whatever the depth."""
    import torch

    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return {layer: torch.compile(layer.forward, dynamic=True) for layer in layers}
