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
    """The numbers as a tensor there, without waiting for what the device still computes: a GPU takes them from pinned
    memory."""
    import torch

    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """Keep the large blocks that tensors free for the next ones, as long as forwards or training steps follow each
    other.

    The C library either gives each to the kernel, and every operation pays page faults for fresh memory; or it keeps
    them in its heap, where small long-lived ones come to stand between them: after some hundred steps of changing
    lengths a training spent half of its time looking for room. At most half as much again is held as was used at once,
    and nothing afterwards. Without a C++ compiler all stays as it is."""
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
