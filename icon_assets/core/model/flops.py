"""Computing costs: floating-point operations of a forward, and the peak performance of this device.

Only useful FLOPs are counted: matrix products of the layers per token, attention per query-key pair, the output head
per scored position. Padding, masks and elementwise operations are not counted.
"""

import time
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from icon_assets.core.model.loading import load_config
from icon_assets.core.model.weights import stored_shapes

if TYPE_CHECKING:
    import torch

_PEAK_SECONDS = 0.6


@dataclass(frozen=True)
class Work:
    """The counted work of forwards: tokens through the layers, query-key pairs per head and layer, scored positions."""

    tokens: int = 0
    attended: int = 0
    scored: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.attended + other.attended, self.scored + other.scored)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.tokens - other.tokens, self.attended - other.attended, self.scored - other.scored)

    def __mul__(self, times: float) -> "Work":
        return Work(round(self.tokens * times), round(self.attended * times), round(self.scored * times))


@dataclass(frozen=True)
class ModelShape:
    """The sizes that FLOPs depend on. `layer_parameters`: weights of the layers' matrices that a token uses, without
    embeddings and head; for a mixture of experts, its share.
    """

    layer_parameters: int
    n_layers: int
    attention_width: int
    hidden_size: int
    vocabulary_size: int

    def flops(self, work: Work) -> int:
        """Two operations per weight and token; attention: two products of `attention_width` per query-key pair."""
        layers = 2 * self.layer_parameters * work.tokens
        attention = 4 * self.attention_width * self.n_layers * work.attended
        head = 2 * self.hidden_size * self.vocabulary_size * work.scored
        return layers + attention + head

    def training_flops(self, work: Work, adapter_parameters: int | None = None) -> int:
        """Forward and backward. `adapter_parameters`: those of a LoRA adapter; None when all weights are trained.

        In the backward pass, a matrix product costs once more for the gradient of its input, and once for that of its
        weight if it is trained. Attention has no weights, but two inputs per product.
        """
        attention = 3 * self.flops(Work(attended=work.attended))
        products = self.flops(Work(tokens=work.tokens, scored=work.scored))
        if adapter_parameters is None:
            return 3 * products + attention
        return 2 * products + attention + 6 * adapter_parameters * work.tokens


@cache
def model_shape(directory: Path) -> ModelShape:
    """The shape of a prepared model, from its configuration and its safetensors headers alone."""
    config = load_config(directory)
    hidden = config.hidden_size
    heads = config.num_attention_heads
    vocabulary = config.vocab_size
    head_size = getattr(config, "head_dim", None) or hidden // heads
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    active = min(1.0, (getattr(config, "num_experts_per_tok", None) or experts) / experts)
    parameters = 0.0
    for name, shape in stored_shapes(directory):
        if len(shape) >= 2 and shape != [vocabulary, hidden]:  # the embeddings and the head have that shape
            parameters += prod(shape) * (active if ".experts." in name else 1)
    return ModelShape(round(parameters), config.num_hidden_layers, heads * head_size, hidden, vocabulary)


def pair_work(context_tokens: float, probe_tokens: float, response_tokens: float) -> Work:
    """One pair in its own forward, which computes the context again. For estimates, lengths may be means."""
    n = context_tokens + probe_tokens
    return Work(round(n), round(n * (n + 1) / 2), round(response_tokens))


def shared_work(context_tokens: float, probe_tokens: float, response_tokens: float) -> Work:
    """One pair after a context that is already computed."""
    attended = probe_tokens * context_tokens + probe_tokens * (probe_tokens + 1) / 2
    return Work(round(probe_tokens), round(attended), round(response_tokens))


def context_work(context_tokens: float) -> Work:
    """One context, computed once."""
    return Work(round(context_tokens), round(context_tokens * (context_tokens + 1) / 2), 0)


@cache
def matmul_peak(device: str, dtype: str) -> float:
    """FLOP/s of large square matrix products on this device, the best of several in about half a second.

    The products grow until one takes long enough to measure. A CPU without instructions for the dtype may need minutes
    for the largest.
    """
    import torch

    def square(n: int) -> "torch.Tensor":
        return torch.randn(n, n, device=device).to(getattr(torch, dtype))

    best = 0.0
    n, largest = (1024, 8192) if device == "cuda" else (256, 2048)
    a, b = square(n), square(n)
    deadline = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < deadline or not best:
        start = time.perf_counter()
        for _ in range(repeats := 8 if device == "cuda" else 2):
            torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        best = max(best, repeats * 2 * n**3 / seconds)
        if n < largest and seconds * 8 < _PEAK_SECONDS / 2:
            n *= 2
            a, b = square(n), square(n)
    return best


@cache
def device_name(device: str) -> str:
    """The name of the device in cost figures, such as `cpu (2 threads)` or `NVIDIA H100`."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
