"""Kernels that bring the cost of a training step on a CPU close to that of its matrix products. The figures do not
change.

Three parts of a step took longer than all matrix products together: attention backward, adapters (a copy in float32 and
a serial dropout for each), and the cross-entropy over the vocabulary. On CUDA the usual kernels are fast.
"""

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from icon_assets.core.errors import IconError

if TYPE_CHECKING:
    import torch

ATTENTION = "icon_samples"
_QUERIES = 256  # of a sample at a time, backward: bounds memory, and skips keys that causality hides
_MASKS = 64  # kept from layer to layer: more than the block shapes of a row, and bounded when there are many lengths
_ROWS = 64  # of logits at a time: they stay in the cache


def register() -> None:
    """Make the attention known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, sample_attention)


def sample_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: Any,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: "torch.Tensor",
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    dropout: float = 0.0,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention inside each sample of a packed row, as a model's layers call it.

    Args:
        query: [1, heads, tokens, head size]; key and value: [1, key heads, tokens, head size].
        cu_seq_lens_q: the starts of the samples, and the end of the last.

    Raises:
        IconError: the layer needs an unsupported feature, or its window is shorter than the longest sample.
    """
    bounds = cu_seq_lens_q.tolist()
    longest = max(stop - start for start, stop in pairwise(bounds))
    windowed = sliding_window is not None and sliding_window < longest
    if windowed or softcap is not None or s_aux is not None or dropout:
        raise IconError("training.packing: this model's attention can't be packed on a CPU; set it to false")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # autocast leaves rotated ones in float32
    query = query.to(value.dtype)
    key = key.to(value.dtype)
    out: Any = _attention().apply(query, key, value, bounds, scale)
    return out.transpose(1, 2).contiguous(), None


@cache
def _attention() -> Any:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    class Attention(torch.autograd.Function):
        """Forward with the fused kernel, backward with plain products, which take half of that kernel's time."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, bounds: list[int], scale: float) -> Any:
            parts = [
                scaled_dot_product_attention(
                    *(x[:, :, start:stop] for x in (query, key, value)), is_causal=True, scale=scale, enable_gqa=True
                )
                for start, stop in pairwise(bounds)
            ]
            out = torch.cat(parts, dim=2)
            ctx.save_for_backward(query, key, value, out)
            ctx.bounds = bounds
            ctx.scale = scale
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            query, key, value, out = ctx.saved_tensors
            heads = key.shape[1]
            # Query heads that share a key head are stacked: [key heads, group, tokens, head size].
            grouped = [x[0].unflatten(0, (heads, -1)) for x in (query, out, gradients[0])]
            results = [torch.empty_like(grouped[0]), torch.zeros_like(key[0]), torch.zeros_like(value[0])]
            for first, start, stop in _blocks(ctx.bounds):
                rows = [x[:, :, start:stop].flatten(1, 2) for x in grouped]
                rows += [x[0, :, first:stop] for x in (key, value)]
                hidden = _hidden(stop - start, stop - first, grouped[0].shape[1])
                of_query, of_key, of_value = _backward(rows, hidden, ctx.scale)
                results[0][:, :, start:stop] = of_query.unflatten(1, (-1, stop - start))
                results[1][:, first:stop] += of_key
                results[2][:, first:stop] += of_value
            return results[0].flatten(0, 1)[None], results[1][None], results[2][None], None, None

    return Attention


def _blocks(bounds: list[int]) -> Iterator[tuple[int, int, int]]:
    """The start of the sample, and a range of its tokens."""
    for first, last in pairwise(bounds):
        for start in range(first, last, _QUERIES):
            yield first, start, min(start + _QUERIES, last)


@lru_cache(maxsize=_MASKS)
def _hidden(queries: int, keys: int, groups: int) -> "torch.Tensor":
    """[groups * queries, keys]: the last query sees every key, each one before it one key less."""
    import torch

    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1).repeat(groups, 1)


def _backward(rows: list[Any], hidden: Any, scale: float) -> tuple[Any, ...]:
    """Gradients of query, key and value of one block, from the attention computed again."""
    query, out, gradient, key, value = rows
    scores = (query @ key.mT).float().mul_(scale).masked_fill_(hidden, float("-inf"))
    shares = scores.softmax(-1)
    mean = (gradient.float() * out.float()).sum(-1, keepdim=True)
    of_scores = (gradient @ value.mT).float().sub_(mean).mul_(shares).mul_(scale).to(query.dtype)
    return of_scores @ key, of_scores.mT @ query, shares.to(query.dtype).mT @ gradient


@cache
def adapter_class() -> Any:
    """peft's adapter of a linear layer, computed in the layer's own dtype; its weights stay in float32."""
    import torch
    from peft.tuners.lora import Linear

    class Adapter(Linear):
        def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            name = self.active_adapters[0]
            layer: Any = self.get_base_layer()
            share = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
            down, up = (matrix[name].weight for matrix in (self.lora_A, self.lora_B))
            return _adapted().apply(x, layer.weight, layer.bias, down, up, self.scaling[name], share)

    return Adapter


@cache
def _adapted() -> Any:
    import torch
    from torch.nn.functional import linear

    class Adapted(torch.autograd.Function):
        """`linear(x, weight, bias) + scaling * up(down(dropout(x)))`, added in place; the weight itself is frozen."""

        @staticmethod
        def forward(
            ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scaling: float, dropout: float
        ) -> Any:
            out = linear(x, weight, bias)
            rows = x.flatten(0, -2)
            down = down.to(x.dtype)
            up = up.to(x.dtype)
            kept = _kept(rows, dropout) if dropout else None
            ctx.scaling = scaling / (1 - dropout)
            inner = (rows if kept is None else rows * kept) @ down.T
            out.flatten(0, -2).addmm_(inner, up.T, alpha=ctx.scaling)
            ctx.save_for_backward(x, weight, down, up, inner, kept)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            x, weight, down, up, inner, kept = ctx.saved_tensors
            gradient = gradients[0].flatten(0, -2)
            rows = x.flatten(0, -2)
            of_inner = (gradient @ up).mul_(ctx.scaling)
            of_down = of_inner.T @ (rows if kept is None else rows * kept)
            of_up = (gradient.T @ inner).mul_(ctx.scaling)
            of_x = None
            if ctx.needs_input_grad[0]:
                through = of_inner @ down
                of_x = (gradient @ weight).add_(through if kept is None else through.mul_(kept)).view_as(x)
            return of_x, None, None, of_down.float(), of_up.float(), None, None

    return Adapted


def _kept(like: "torch.Tensor", dropout: float) -> "torch.Tensor":
    """1 where dropout leaves an element and 0 elsewhere, to within 1 / 65536.

    The generator is serial, so each of its draws serves four elements. Comparisons and booleans would also be slow.
    """
    import torch

    size = like.numel()
    limit = round(dropout * 2**16) - 2**15
    draws = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size]
    return draws.clamp_(limit - 1, limit).sub_(limit - 1).to(like.dtype).view_as(like)


def cross_entropy(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Sum over rows, in float32 regardless of the logits' dtype. Their gradient is computed at the same time and kept
    in their dtype."""
    loss: Any = _cross_entropy().apply(logits, targets)
    return loss


@cache
def _cross_entropy() -> Any:
    import torch

    class CrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, targets: Any) -> Any:
            gradient = torch.empty_like(logits)
            total = torch.zeros((), dtype=torch.float32)
            for start in range(0, len(logits), _ROWS):
                rows = logits[start : start + _ROWS].float()
                wanted = targets[start : start + _ROWS, None]
                rows = rows - rows.logsumexp(-1, keepdim=True)
                total -= rows.gather(1, wanted).sum()
                rows.exp_().scatter_add_(1, wanted, torch.full(wanted.shape, -1.0))
                gradient[start : start + _ROWS] = rows
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return ctx.saved_tensors[0] * gradients[0], None

    return CrossEntropy
