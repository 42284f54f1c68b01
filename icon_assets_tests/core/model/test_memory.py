"""Memory that tensors give back: kept for the next ones, bounded, given up afterwards, and never a tensor's own."""

import ctypes
import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.model.memory import freed_memory_kept
from icon_assets.core.model.native import compiler, library

LARGE = 2**22  # numbers of a float32 tensor, far above what the C library is asked for
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def held() -> int:
    shelf = library("kept_memory")
    assert shelf is not None
    shelf.held_by_shelf.restype = ctypes.c_size_t
    return shelf.held_by_shelf()


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert held() == 0


def test_a_freed_block_serves_the_next_tensor_of_about_its_size() -> None:
    with freed_memory_kept("cpu"):
        first = torch.ones(LARGE)
        place = first.data_ptr()
        del first
        assert torch.empty(LARGE - 10_000).data_ptr() == place
        other = torch.empty(LARGE // 4)
        assert other.data_ptr() != place, "a quarter of a block would waste the rest"
        del other
        assert held() > 4 * LARGE
    assert held() == 0


def test_what_does_not_come_again_does_not_add_up() -> None:
    with freed_memory_kept("cpu"):
        for size in range(LARGE, 9 * LARGE, LARGE // 2):
            torch.empty(size)
            assert held() <= 1.6 * 4 * size


def test_tensors_outlive_it_and_older_ones_end_in_it() -> None:
    before = torch.full((LARGE,), 1.0)
    with freed_memory_kept("cpu"):
        inside = torch.full((LARGE,), 2.0)
        small = torch.full((3,), 3.0)
        nothing = torch.empty(0)
        assert inside.data_ptr() % 64 == small.data_ptr() % 64 == 0, "aligned for vectors"
        del before
    assert held() >= 4 * LARGE
    assert (inside == 2).all()
    assert small.tolist() == [3, 3, 3]
    assert nothing.numel() == 0
    inside.resize_(2 * LARGE)[LARGE:] = 4.0
    assert (inside[:LARGE] == 2).all(), "a storage that grows asks the allocator it came from"
    small.resize_(5)
    assert small[:3].tolist() == [3, 3, 3]


def test_only_the_outermost_gives_up_and_an_error_does_not_keep_it() -> None:
    with freed_memory_kept("cpu"):
        with freed_memory_kept("cpu"):
            torch.empty(LARGE)
        assert held() > 0
    assert held() == 0
    with pytest.raises(RuntimeError), freed_memory_kept("cpu"):
        torch.empty(LARGE).view(-1, LARGE + 1)
    assert held() == 0


def test_on_a_gpu_and_outside_the_usual_allocator_serves() -> None:
    torch.empty(LARGE)
    with freed_memory_kept("cuda"):
        kept = torch.empty(LARGE)
        assert held() == 0
    del kept


@given(st.lists(st.tuples(st.integers(0, 2**20), st.booleans()), max_size=30))
def test_no_two_living_tensors_share_memory(steps: list[tuple[int, bool]]) -> None:
    alive: list[tuple[int, torch.Tensor]] = []
    with freed_memory_kept("cpu"):
        for number, (size, keep) in enumerate(steps):
            tensor = torch.full((size,), number, dtype=torch.int32)
            if keep:
                alive.append((number, tensor))
            elif alive:
                alive.pop(number % len(alive))
    assert all((tensor == number).all() for number, tensor in alive)


def test_threads_share_it() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(200):
            tensor = torch.full((2**17 + 2**15 * (turn % 7),), number)
            if not (tensor == number).all():
                wrong.append(number)

    with freed_memory_kept("cpu"):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_without_a_compiler_everything_works_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icon_assets.core.model.memory.library", lambda name: None)
    with freed_memory_kept("cpu"):
        torch.empty(LARGE)
        assert held() == 0
