"""What becomes of the memory that tensors on a CPU give back."""

from collections.abc import Iterator
from contextlib import contextmanager

from icon_assets.core.native import library


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Keep the large blocks that tensors free for the next ones, as long as forwards or training steps follow each other.

    The C library either gives each to the kernel, and every operation pays page faults for fresh memory; or it keeps them in
    its heap, where small long-lived ones come to stand between them: after some hundred steps of changing lengths a
    training spent half of its time looking for room. At most half as much again is held as was used at once, and nothing
    afterwards. Without a C++ compiler all stays as it is.
    """
    shelf = library("kept_memory") if device == "cpu" else None
    if shelf is None:
        yield
        return
    shelf.open_shelf()
    try:
        yield
    finally:
        shelf.close_shelf()
