"""Memory on the way to a device, what becomes of the memory that tensors on a CPU give back, and work that needs more
memory than there is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from icon_assets.core.model.native import library

if TYPE_CHECKING:
    import torch


Part = TypeVar("Part")
Result = TypeVar("Result")


def on_device(values: "Sequence[Any] | torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The numbers as a tensor on the device, without waiting for its running work: a GPU reads them from pinned
    memory."""
    import torch

    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Reuse the large blocks that tensors free, while forwards or training steps follow each other.

    The C library has two ways to handle such blocks. Returned to the kernel, each operation pays page faults for fresh
    memory. Kept in its heap, small long-lived blocks fragment it: after some hundred steps of changing lengths, a
    training spent half of its time searching for free blocks. This allocator holds at most half more than the peak use,
    and nothing afterwards. Without a C++ compiler nothing changes."""
    shelf = library("kept_memory") if device == "cpu" else None
    if shelf is None:
        yield
        return
    shelf.open_shelf()
    try:
        yield
    finally:
        shelf.close_shelf()


def in_halves(
    part: Part, compute: Callable[[Part], Iterable[Result]], halve: Callable[[Part], Sequence[Part]], device: str
) -> Iterator[Result]:
    """What `compute` gives for the whole part or, where memory does not suffice, for its halves, and their halves.

    Args:
        compute: runs out of memory, if at all, before its first result: none comes twice.
        halve: asked for a part that did not fit; it raises where one can't be halved.
        device: `cuda` or `cpu`.

    Yields:
        Results in the order of the parts.
    """
    import torch

    try:
        yield from compute(part)
    except torch.OutOfMemoryError:
        halves = halve(part)
    else:
        return
    if device == "cuda":
        torch.cuda.empty_cache()
    for half in halves:
        yield from in_halves(half, compute, halve, device)
