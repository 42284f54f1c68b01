"""Work that needs more memory than there is."""

from collections.abc import Iterator

import pytest
import torch

from icon_assets.core.errors import IconError
from icon_assets.core.model.memory import in_halves


def test_what_does_not_fit_into_memory_comes_in_halves_in_its_order_and_once() -> None:
    asked = []

    def compute(part: list[int]) -> Iterator[int]:
        asked.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError
        yield from part

    assert list(in_halves(list(range(10)), compute, _halves, "cpu")) == list(range(10))
    assert asked == [10, 5, 2, 3, 5, 2, 3]


def test_what_can_not_be_halved_is_refused_after_what_came_before_it() -> None:
    def compute(part: list[int]) -> list[int]:
        if 2 in part:
            raise torch.OutOfMemoryError
        return part

    results = in_halves([0, 1, 2, 3], compute, _halves, "cpu")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(IconError, match="too large"):
        next(results)


def _halves(part: list[int]) -> list[list[int]]:
    if len(part) == 1:
        raise IconError("too large")
    middle = len(part) // 2
    return [part[:middle], part[middle:]]
