"""What the C library does with large blocks, seen by its own count of those it maps one by one."""

import ctypes

import pytest

from icon_assets.core.memory import freed_memory_kept

LIBRARY = ctypes.CDLL(None)
LARGE = 2**27
pytestmark = pytest.mark.skipif(not hasattr(LIBRARY, "mallinfo2"), reason="glibc 2.33 or later tells")


class _Counts(ctypes.Structure):
    _fields_ = tuple((f"field{i}" if i != 3 else "mapped", ctypes.c_size_t) for i in range(10))


def _is_mapped_alone() -> bool:
    """Whether a large block comes from the kernel, and goes back to it."""
    LIBRARY.mallinfo2.restype, LIBRARY.malloc.restype = _Counts, ctypes.c_void_p
    before = LIBRARY.mallinfo2().mapped
    block = ctypes.c_void_p(LIBRARY.malloc(ctypes.c_size_t(LARGE)))
    mapped = LIBRARY.mallinfo2().mapped > before
    LIBRARY.free(block)
    return mapped


def test_large_blocks_are_kept_while_forwards_follow_each_other_and_not_after_them() -> None:
    with freed_memory_kept("cpu"):
        assert not _is_mapped_alone()
    assert _is_mapped_alone()
    with pytest.raises(ZeroDivisionError), freed_memory_kept("cpu"):
        _ = 1 / 0
    assert _is_mapped_alone()


def test_on_a_gpu_nothing_is_changed() -> None:
    with freed_memory_kept("cuda"):
        assert _is_mapped_alone()
