"""Texts in padded rows and in groups: nothing lost, nothing mixed up, within the limits."""

from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.model.batches import by_length, padded

TEXTS = st.lists(st.lists(st.integers(0, 9)), min_size=1, max_size=8)


def test_padding_stands_behind_or_before_a_text() -> None:
    texts = [(5, 6, 7), [8]]
    assert padded(texts) == ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    assert padded(texts, 9, left=True) == ([[5, 6, 7], [9, 9, 8]], [[1, 1, 1], [0, 0, 1]])


@given(TEXTS, st.integers(-1, 9), st.booleans())
def test_the_mask_gives_every_text_back_and_the_rest_is_padding(
    texts: list[list[int]], padding: int, left: bool
) -> None:
    ids, mask = padded(texts, padding, left=left)
    assert {len(row) for row in [*ids, *mask]} == {max(map(len, texts))}
    for text, row, real in zip(texts, ids, mask, strict=True):
        assert [token for token, kept in zip(row, real, strict=True) if kept] == text
        assert [token for token, kept in zip(row, real, strict=True) if not kept] == [padding] * real.count(0)
        assert real == sorted(real, reverse=not left)


LENGTHS = st.lists(st.integers(0, 40), max_size=30)


@given(LENGTHS, st.integers(1, 7), st.integers(1, 200), st.booleans())
def test_every_text_is_in_one_group_and_neither_limit_is_passed(
    lengths: list[int], texts: int, tokens: int, shortest_first: bool
) -> None:
    groups = by_length(lengths, texts=texts, tokens=tokens, shortest_first=shortest_first)
    order = [index for group in groups for index in group]
    sign = 1 if shortest_first else -1
    assert order == sorted(range(len(lengths)), key=lambda index: (sign * lengths[index], index))
    for group in groups:
        assert 0 < len(group) <= texts
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= tokens


@given(LENGTHS, st.integers(1, 200), st.data())
def test_shortest_first_what_is_left_after_any_group_is_grouped_as_it_was(
    lengths: list[int], tokens: int, data: st.DataObject
) -> None:
    groups = by_length(lengths, tokens=tokens, shortest_first=True)
    done = data.draw(st.integers(0, len(groups)))
    left = sorted(index for group in groups[done:] for index in group)
    again = by_length([lengths[index] for index in left], tokens=tokens, shortest_first=True)
    assert [[left[place] for place in group] for group in again] == groups[done:]


def test_groups_are_filled_as_far_as_the_limit_allows() -> None:
    assert by_length([3, 9, 3, 5], tokens=10) == [[1], [3, 0], [2]]
    assert by_length([3, 9, 3, 5], tokens=10, shortest_first=True) == [[0, 2], [3], [1]]
    assert by_length([1, 1, 1, 1, 1], texts=2) == [[0, 1], [2, 3], [4]]
    assert by_length([], tokens=10) == []
