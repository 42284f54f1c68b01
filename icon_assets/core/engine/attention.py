"""Attention of a packed forward: the places of contexts and probes, and which tokens attend to which.

Three kernels of the same mask, all registered with transformers under one name, so that the model code stays as it is:
- `segments`: scaled-dot-product attention per segment, which works everywhere;
- `flex`: one FlexAttention call over the whole forward (CUDA), which gets the mask as a table of blocks and never as a
  tokens x tokens matrix;
- `fused`: one call of our own C++ kernel over the whole forward. It needs a CPU with bfloat16 matrix units, and a
  compiler. Segments are so short that torch's kernel would spend more time on each call than on its products.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from icon_assets.core.model.memory import on_device
from icon_assets.core.model.native import library, multiplies_bfloat16

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

ATTENTION = "icon_packed"
BLOCK = 128  # tokens per side of a FlexAttention block
_QUERIES = 192  # of a segment at a time: keys that causality hides from all of them are not computed
Kernel = Literal["segments", "flex", "fused"]


class NotPackable(Exception):
    """The model's attention needs something that the packed attention does not support."""


@dataclass(frozen=True)
class Segment:
    """A probe inside a packed forward: token range [start, stop) and its context's range."""

    context_start: int
    context_stop: int
    start: int
    stop: int


@dataclass
class Layout:
    """The places of contexts and probes in one packed forward. It is passed to the attention function of every
    layer."""

    kernel: Kernel = "segments"
    contexts: list[tuple[int, int]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    masks: "dict[tuple[int, int], torch.Tensor]" = field(default_factory=dict)  # of the segments, for all layers
    block_mask: "BlockMask | None" = None  # of the flex kernel, for all layers

    @property
    def longest(self) -> int:
        """Tokens of the longest context with its probe."""
        return max(s.context_stop - s.context_start + s.stop - s.start for s in self.segments)

    @property
    def attended(self) -> int:
        """Query-key pairs of one head in one layer: what attention has to compute."""
        contexts = sum((stop - start) * (stop - start + 1) // 2 for start, stop in self.contexts)
        return contexts + sum(
            (s.stop - s.start) * (s.context_stop - s.context_start) + (s.stop - s.start) * (s.stop - s.start + 1) // 2
            for s in self.segments
        )

    def parts(self) -> Iterator[Segment]:
        """Contexts and probes as segments; a context has an empty context of its own."""
        yield from (Segment(start, start, start, stop) for start, stop in self.contexts)
        yield from self.segments

    @cached_property
    def table(self) -> "torch.Tensor":
        """The parts in the form of the fused kernel, one row each, for all layers. It finds contexts among the
        parts."""
        import torch

        assert {(s.context_start, s.context_stop) for s in self.segments if s.context_start < s.context_stop} <= set(
            self.contexts
        )
        return torch.tensor([(p.context_start, p.context_stop, p.start, p.stop) for p in self.parts()])


def register() -> None:
    """Make the packed attention known to transformers."""
    import torch
    from transformers import AttentionInterface

    # Compiled layers leave the attention as it is: many small calls, or one kernel compiled by itself.
    segments: Any = torch.compiler.disable(segment_attention)
    flex: Any = torch.compiler.disable(flex_attention, recursive=False)
    kernels = {"segments": segments, "flex": flex, "fused": torch.compiler.disable(fused_attention)}

    def packed_attention(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float | None = None,
        *,
        packed_layout: Layout,
        **options: Any,
    ) -> Any:
        attend = kernels[packed_layout.kernel]
        return attend(query, key, value, scaling, packed_layout, **options), None

    AttentionInterface.register(ATTENTION, packed_attention)


def segment_attention(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    scaling: float | None,
    layout: Layout,
    **options: Any,
) -> "torch.Tensor":
    """Contexts attend causally. Each probe attends to its context and, causally, to itself. One call per segment.

    Args:
        query: [1, heads, tokens, head size].
        key: [1, key heads, tokens, head size].
        value: [1, key heads, tokens, value size]; the value size may differ from the head size.
        layout: places of contexts and probes.
        options: further options of the layer.

    Returns:
        [1, tokens, heads, head size].

    Raises:
        NotPackable: the layer soft-caps its logits or has sinks, or its window is shorter than the longest text.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    _check(layout, **options)
    heads = key.shape[1]
    groups = query.shape[1] // key.shape[1]
    size = query.shape[-1]
    # Query heads that share a key head are stacked: one larger product instead of repeated keys.
    grouped = query.unflatten(1, (heads, groups))
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    grouped_out = out.unflatten(1, (heads, groups))
    for part in layout.parts():
        before = part.context_stop - part.context_start
        keys, values = (
            torch.cat([x[:, :, part.context_start : part.context_stop], x[:, :, part.start : part.stop]], dim=2)
            if before
            else x[:, :, part.start : part.stop]
            for x in (key, value)
        )
        for start in range(part.start, part.stop, _QUERIES):
            stop = min(start + _QUERIES, part.stop)
            seen = before + stop - part.start  # later keys are hidden from all of these queries
            attended = scaled_dot_product_attention(
                grouped[:, :, :, start:stop].reshape(1, heads, groups * (stop - start), size),
                keys[:, :, :seen],
                values[:, :, :seen],
                attn_mask=_mask(layout, stop - start, seen, groups, query),
                scale=scaling,
            )
            grouped_out[:, :, :, start:stop] = attended.unflatten(2, (groups, stop - start))
    return out.transpose(1, 2).contiguous()


def flex_attention(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    scaling: float | None,
    layout: Layout,
    **options: Any,
) -> "torch.Tensor":
    """The same attention as `segment_attention`, in one fused call over the whole forward."""
    _check(layout, **options)
    on_gpu = query.device.type == "cuda"
    out: Any = _compiled_flex()(
        query,
        key,
        value,
        block_mask=layout.block_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        # The kernel for few queries, which short forwards would get, does not support grouped heads.
        kernel_options={"BACKEND": "TRITON"} if on_gpu else None,
    )
    return out.transpose(1, 2).contiguous()


def fused_attention(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    scaling: float | None,
    layout: Layout,
    **options: Any,
) -> "torch.Tensor":
    """The same attention as `segment_attention`, in one call of `kernels/packed_attention.cpp`.

    Raises:
        NotPackable: as there; or an unsupported dtype; or it can't be compiled here, or fails.
    """
    import torch

    _check(layout, **options)
    heads = query.shape[1]
    key_heads = key.shape[1]
    tokens, size = query.shape[2:]
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]
    shapes = [(1, heads, tokens, size), (1, key_heads, tokens, size), (1, key_heads, tokens, size)]
    suits = [
        (x.shape, x.dtype, x.device.type) == (shape, torch.bfloat16, "cpu")
        for x, shape in zip(inputs, shapes, strict=True)
    ]
    kernel = library("packed_attention")
    if kernel is None or not all(suits) or size % 16 or heads % key_heads or layout.table.max() > tokens:
        raise NotPackable
    out = torch.empty(1, tokens, heads, size, dtype=query.dtype)
    described = (_Heads * 3)(*(_Heads(x.data_ptr(), x.stride(1), x.stride(2)) for x in inputs))
    numbers = (ctypes.c_int64(n) for n in (tokens, key_heads, heads // key_heads, size))
    scale = ctypes.c_float(size**-0.5 if scaling is None else scaling)
    parts = ctypes.c_void_p(layout.table.data_ptr()), ctypes.c_int64(len(layout.table))
    if not kernel.packed_attention(described, ctypes.c_void_p(out.data_ptr()), *numbers, scale, *parts):
        raise NotPackable
    return out


class _Heads(ctypes.Structure):
    """A tensor of the fused kernel: its address, and its strides between heads and between tokens."""

    _fields_ = (("data", ctypes.c_void_p), ("head", ctypes.c_int64), ("token", ctypes.c_int64))


def can_fuse(model_dtype: "torch.dtype", device: "torch.device") -> bool:
    """Whether to try the fused kernel: bfloat16 on a CPU that multiplies it natively."""
    import torch

    return device.type == "cpu" and model_dtype == torch.bfloat16 and multiplies_bfloat16()


@cache
def _compiled_flex() -> Any:
    """FlexAttention is fused only when compiled; token counts differ from forward to forward, hence dynamic shapes."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _check(
    layout: Layout, *, sliding_window: int | None = None, softcap: float | None = None, s_aux: Any = None, **_: Any
) -> None:
    if softcap is not None or s_aux is not None or (sliding_window is not None and sliding_window < layout.longest):
        raise NotPackable


def _mask(layout: Layout, queries: int, keys: int, groups: int, like: "torch.Tensor") -> "torch.Tensor":
    """Additive mask [groups * queries, keys]: the last query sees every key, each one before it one key less."""
    import torch

    if (queries, keys) not in layout.masks:
        hidden = torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device)
        layout.masks[queries, keys] = hidden.triu(keys - queries + 1).repeat(groups, 1)
    return layout.masks[queries, keys]


def block_mask(layout: Layout, tokens: int, device: "torch.device") -> "BlockMask":
    """The layout in the form of FlexAttention: the key blocks that each query block needs, and the rule inside mixed
    ones."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    # The part of each token, and the part that is its context; a part is named by its start.
    part, context = torch.zeros((2, tokens), dtype=torch.int32)
    for of in layout.parts():
        part[of.start : of.stop] = of.start
        context[of.start : of.stop] = of.context_start if of.context_stop > of.context_start else of.start
    part = on_device(part, device)
    context = on_device(context, device)

    def visible(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & ((part[key] == part[query]) | (part[key] == context[query]))

    mixed, full = block_table(layout, tokens)
    return BlockMask.from_kv_blocks(
        *_padded(mixed, device),
        *_padded(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
        compute_q_blocks=False,  # for gradients only
    )


def block_table(layout: Layout, tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Key blocks per query block: partly visible ones, and fully visible ones, which need no rule."""
    n_blocks = -(-tokens // BLOCK)
    mixed: list[set[int]] = [set() for _ in range(n_blocks)]
    full: list[set[int]] = [set() for _ in range(n_blocks)]
    for part in layout.parts():
        for index in range(part.start // BLOCK, -(-part.stop // BLOCK)):
            first = max(index * BLOCK, part.start)
            last = min((index + 1) * BLOCK, part.stop)
            alone = last - first == min(BLOCK, tokens - index * BLOCK)  # no other part has queries in this block
            for start, stop, seen in (
                (part.context_start, part.context_stop, part.context_stop),
                (part.start, last, first + 1),  # its own tokens, in full up to the first query
            ):
                for key in range(start // BLOCK, -(-stop // BLOCK) if stop > start else start // BLOCK):
                    whole = alone and start <= key * BLOCK and (key + 1) * BLOCK <= seen
                    (full if whole else mixed)[index].add(key)
    return [sorted(m) for m in mixed], [sorted(f) for f in full]


def _padded(rows: list[list[int]], device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor]":
    """[1, 1, query blocks] counts and [1, 1, query blocks, key blocks] indices."""
    import torch

    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    indices = torch.zeros((len(rows), len(rows)), dtype=torch.int32)
    for index, row in enumerate(rows):
        indices[index, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return on_device(counts[None, None], device), on_device(indices[None, None], device)
