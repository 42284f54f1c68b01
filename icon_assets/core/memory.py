"""What the C library does with memory that forwards on a CPU give back."""

from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h
_NEVER = 2**31 - 1
# Where glibc's own limits end up in a process that uses large blocks; once touched, it does not move them any more.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Let glibc reuse large freed blocks instead of returning each to the kernel, as long as forwards follow each other.

    Every activation is larger than its mmap threshold, so that each operation would pay page faults for fresh memory:
    without this a forward on a CPU took 1.4 times as long. It ends with them: what else the process does, such as training, with
    blocks of ever changing sizes, gets the usual limits and a heap without what was left. Other C libraries have no `mallopt` and
    are left alone.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if device != "cpu" or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
