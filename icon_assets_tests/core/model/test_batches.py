"""Texts in padded rows and in groups: nothing lost, nothing mixed up, within the limits."""

from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.model.batches import padded

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
