"""Texts that share a padded forward: which of them, and how they are laid out. Pure arithmetic, no tensors."""

from collections.abc import Sequence
from math import inf

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


def by_length(
    lengths: Sequence[int], *, texts: float = inf, tokens: float = inf, shortest_first: bool = False
) -> list[list[int]]:
    """Indices of texts in groups of similar length, longest first; equally long ones stay in their order.

    Args:
        lengths: tokens of each text.
        texts: of a group, at most.
        tokens: of a group with its padding, at most; a longer text is a group of its own.
    """

    def joins(group: list[int], index: int) -> bool:
        n = len(group) + 1
        return n <= texts and n * max(lengths[group[0]], lengths[index]) <= tokens

    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=not shortest_first):
        if groups and joins(groups[-1], index):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
