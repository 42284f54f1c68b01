"""Texts that share a padded forward: which of them, and how they are laid out. Pure arithmetic, no tensors."""

from collections.abc import Sequence

Rows = list[list[int]]


def padded(texts: Sequence[Sequence[int]], padding: int = 0, *, left: bool = False) -> tuple[Rows, Rows]:
    """Token ids as rows of the longest one's length, and a mask of the same shape: 1 where an id is real.

    Args:
        padding: the id beside them; any will do where the mask hides it.
        left: put it before the text, not behind it.
    """
    width = max(map(len, texts))
    gaps = [width - len(text) for text in texts]
    if left:
        ids = [[padding] * gap + [*text] for gap, text in zip(gaps, texts, strict=True)]
        return ids, [[0] * gap + [1] * (width - gap) for gap in gaps]
    ids = [[*text] + [padding] * gap for gap, text in zip(gaps, texts, strict=True)]
    return ids, [[1] * (width - gap) + [0] * gap for gap in gaps]
