"""The mask of a packed forward: the block table of the flex kernel says exactly what the segments say."""

from hypothesis import given, settings
from hypothesis import strategies as st

from icon_assets.core.attention import BLOCK, Layout, Segment, block_table

lengths = st.integers(1, 300)
rows = st.lists(st.tuples(st.integers(0, 300), st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=3)


def layout_of(rows: list[tuple[int, list[int]]]) -> tuple[Layout, int]:
    layout, at = Layout(), 0
    for context, probes in rows:
        start, at = at, at + context
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
