"""What safetensors files hold, from their headers alone: no tensor is read."""

from collections.abc import Iterator
from math import prod
from pathlib import Path


def stored_shapes(directory: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor in the directory's safetensors files; tied embeddings come once."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                yield name, tensors.get_slice(name).get_shape()


def n_parameters(directory: Path) -> int:
    """Stored parameters, of a model or of an adapter."""
    return sum(prod(shape) for _, shape in stored_shapes(directory))
