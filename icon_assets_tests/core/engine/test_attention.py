"""The mask of a packed forward: the other kernels see exactly what the segments say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icon_assets.core.engine.attention import (
    BLOCK,
    Layout,
    NotPackable,
    Segment,
    block_table,
    fused_attention,
    segment_attention,
)
from icon_assets_tests.core.model.test_native import needs_units

lengths = st.integers(1, 300)
rows = st.lists(st.tuples(st.integers(0, 300), st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=3)


def layout_of(rows: list[tuple[int, list[int]]]) -> tuple[Layout, int]:
    layout = Layout()
    at = 0
    for context, probes in rows:
        start = at
        at = at + context
        if context:
            layout.contexts.append((start, at))
        for length in probes:
            layout.segments.append(Segment(start, start + context, at, at + length))
            at += length
    return layout, at


def visible(layout: Layout, tokens: int) -> list[list[bool]]:
    """The mask written down plainly."""
    mask = [[False] * tokens for _ in range(tokens)]
    for part in layout.parts():
        for query in range(part.start, part.stop):
            for key in [*range(part.context_start, part.context_stop), *range(part.start, query + 1)]:
                mask[query][key] = True
    return mask


@settings(max_examples=40)
@given(rows)
def test_blocks_are_listed_full_or_mixed_exactly_as_the_mask_says(rows: list[tuple[int, list[int]]]) -> None:
    layout, tokens = layout_of(rows)
    mask = visible(layout, tokens)
    mixed, full = block_table(layout, tokens)
    for row in range(len(mixed)):
        assert not set(mixed[row]) & set(full[row])
        queries = mask[row * BLOCK : (row + 1) * BLOCK]
        for column in range(len(mixed)):
            cells = [cell for query in queries for cell in query[column * BLOCK : (column + 1) * BLOCK]]
            if column in full[row]:
                assert all(cells)
                assert len(queries[0][column * BLOCK : (column + 1) * BLOCK]) == BLOCK
            elif column not in mixed[row]:
                assert not any(cells), "a visible pair would be lost"
            else:
                assert any(cells), "a block that nobody looks at costs time"


@given(rows)
def test_the_count_of_attended_pairs_is_the_size_of_the_mask(rows: list[tuple[int, list[int]]]) -> None:
    small = [(context % 20, [length % 20 + 1 for length in probes]) for context, probes in rows]
    layout, tokens = layout_of(small)
    assert layout.attended == sum(map(sum, visible(layout, tokens)))


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(heads: int, groups: int, tokens: int, size: int) -> Tensors:
    """Query, key and value as models make them, all heads of a token together; queries so large that few keys count."""
    torch.manual_seed(tokens)
    query, key, value = (torch.randn(1, tokens, n, size).transpose(1, 2) for n in (heads * groups, heads, heads))
    return (query * 3).bfloat16(), key.bfloat16(), value.bfloat16()


def worst(found: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> float:
    """The largest error beside the same numbers in float32, relative to values of size 1."""
    exact = segment_attention(query.float(), key.float(), value.float(), None, layout)
    return ((found.float() - exact).abs() / exact.abs().clamp(min=1)).max().item()


def own_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What an unchanged model computes: torch's attention of one context with one probe, causal, pair by pair."""
    groups = query.shape[1] // key.shape[1]
    rows = []
    for part in layout.segments:
        tokens = [*range(part.context_start, part.context_stop), *range(part.start, part.stop)]
        q, k, v = (x[:, :, tokens] for x in (query, key, value))
        keys, values = (x.repeat_interleave(groups, 1) for x in (k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(q, keys, values, is_causal=True)
        rows.append(attended[:, :, part.start - part.stop :])
    return torch.cat(rows, dim=2).transpose(1, 2)


@pytest.mark.parametrize("kernel", ["segments", pytest.param("fused", marks=needs_units)])
@pytest.mark.parametrize("gain", [0.3, 1.0, 3.0])
def test_in_bfloat16_a_kernel_is_as_accurate_as_the_attention_of_an_unchanged_model(kernel: str, gain: float) -> None:
    """With the same bfloat16 numbers, beside float64: sums and softmax of every kernel are in float32."""
    layout, tokens = layout_of([(300, [30, 90, 280]), (40, [200, 2])])
    query, key, value = inputs(3, 3, tokens, 64)
    tensors = (query * gain, key, value)
    attend = {"segments": segment_attention, "fused": fused_attention}[kernel]
    probes = torch.cat([torch.arange(part.start, part.stop) for part in layout.segments])
    wide_layout, _ = layout_of([(300, [30, 90, 280]), (40, [200, 2])])  # masks are kept, in the numbers' own type
    exact = segment_attention(tensors[0].double(), key.double(), value.double(), None, wide_layout)

    def error(found: torch.Tensor) -> float:
        return (found.double() - exact[:, probes]).square().mean().sqrt().item()

    ours = error(attend(*tensors, None, layout)[:, probes])
    theirs = error(own_attention(*tensors, layout))
    assert ours <= 1.1 * theirs, f"{kernel}: {ours:.2e}, torch's own: {theirs:.2e}"


@needs_units
@settings(max_examples=25)
@given(
    rows, st.integers(1, 3), st.sampled_from([1, 2, 3, 8]), st.sampled_from([16, 64, 80, 96, 128]), st.integers(1, 3)
)
def test_the_fused_kernel_gives_what_the_segments_give(
    rows: list[tuple[int, list[int]]], heads: int, groups: int, size: int, threads: int
) -> None:
    layout, tokens = layout_of(rows)
    tensors = inputs(heads, groups, tokens, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = fused_attention(*tensors, None, layout)
    finally:
        torch.set_num_threads(before)
    assert found.shape == (1, tokens, heads * groups, size)
    assert worst(found, *tensors, Layout(contexts=layout.contexts, segments=layout.segments)) < 0.02


@needs_units
def test_the_fused_kernel_takes_any_strides_and_scales() -> None:
    layout, tokens = layout_of([(70, [40, 1, 130])])
    query, key, value = inputs(2, 2, tokens, 32)
    expected = fused_attention(query, key, value, None, layout)
    spread = key.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(fused_attention(query.contiguous(), spread, value.contiguous(), 32**-0.5, layout), expected)
    assert torch.equal(fused_attention(query * 2, key, value, 32**-0.5 / 2, layout), expected)


@needs_units
def test_an_undefined_number_is_neither_lost_nor_seen_by_other_probes() -> None:
    layout, tokens = layout_of([(70, [40, 50]), (0, [30])])
    query, key, value = inputs(1, 2, tokens, 64)
    value[0, 0, 75] = float("nan")  # of the first probe
    undefined = fused_attention(query, key, value, None, layout).isnan().any(3).any(2)[0]
    assert undefined[75:110].all()
    assert not undefined[:70].any()
    assert not undefined[110:].any()


@needs_units
@pytest.mark.parametrize("spoiled", [0, 1], ids=["query", "key"])
def test_an_undefined_query_or_key_is_not_lost(spoiled: int) -> None:
    layout, tokens = layout_of([(70, [40, 50])])
    tensors = inputs(1, 2, tokens, 64)
    tensors[spoiled][0, 0, 75] = float("nan")  # of the first probe
    undefined = fused_attention(*tensors, None, layout).isnan().any(3).any(2)[0]
    assert undefined[75]
    assert not undefined[:70].any()
    assert not undefined[110:].any()


@needs_units
@pytest.mark.parametrize("context", [1500, 5000])
def test_the_fused_kernel_reads_long_contexts_in_smaller_tasks(context: int) -> None:
    layout, tokens = layout_of([(context, [300, 1])])
    tensors = inputs(2, 3, tokens, 64)
    assert worst(fused_attention(*tensors, None, layout), *tensors, layout_of([(context, [300, 1])])[0]) < 0.02


@needs_units
def test_what_the_fused_kernel_does_not_compute_is_refused() -> None:
    layout, tokens = layout_of([(7, [4])])
    query, key, value = inputs(2, 2, tokens, 16)
    for refused in (
        (query.float(), key.float(), value.float()),
        (query[..., :8], key[..., :8], value[..., :8]),
        (query, key[:, :, 1:], value),
        (query[:, :3], key, value),
        (query[:, :, 1:], key[:, :, 1:], value[:, :, 1:]),
    ):
        with pytest.raises(NotPackable):
            fused_attention(*refused, None, layout)
    for option in ({"sliding_window": 10}, {"softcap": 1.0}, {"s_aux": query}):
        with pytest.raises(NotPackable):
            fused_attention(query, key, value, None, layout, **option)
