"""The package's C++ code. It is compiled on the machine where it runs: once per user and kind of machine, at first use,
into the user's cache.

It is optional. If there is no compiler, or it fails, `library` returns None and the caller continues without it.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from icon_assets.core.digests import digest
from icon_assets.core.errors import DiskRefused
from icon_assets.core.files import new_directory, sole_writer

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC")
_SECONDS = 120  # for a compilation, which takes two to five
_FILE = "library.so"


class _NotOwn(Exception):
    """The directory could be written by a different user, who could then choose the code that is run."""


def multiplies_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 with this CPU's native instructions; `ATEN_CPU_CAPABILITY` may disable them."""
    import torch

    features = torch.cpu.get_capabilities()
    has_them = features.get("amx_bf16", False) or features.get("avx512_bf16", False)
    return has_them and torch.backends.cpu.get_cpu_capability() == "AVX512"


def compiler() -> str | None:
    """The path of the C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++"))


@cache
def library(name: str) -> ctypes.CDLL | None:
    """`kernels/<name>.cpp` beside this module, linked with torch; None if it can't be built."""
    import torch

    path = compiler()
    if path is None:
        logging.getLogger(__name__).debug("%s.cpp was not built: no C++ compiler", name)
        return None
    source = (resources.files("icon_assets") / "core" / "model" / "kernels" / f"{name}.cpp").read_text("utf-8")
    torch_home = Path(torch.__file__).parent
    command = [
        path,
        *_FLAGS,
        f"-I{torch_home / 'include'}",
        "-x",
        "c++",
        "-",
        f"-L{torch_home / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    # With -march=native the code differs between machines, and a home directory may be shared.
    machine = [torch.__version__, torch.version.git_version, dict(torch.cpu.get_capabilities())]
    try:
        return _built(f"{name}-{digest([source, command, machine])}", command, source)
    except (OSError, subprocess.SubprocessError, DiskRefused) as error:
        reason = error.stderr[-500:] if isinstance(error, subprocess.CalledProcessError) else error
        logging.getLogger(__name__).debug("%s.cpp was not built: %s", name, reason)
        return None


def _built(name: str, command: list[str], source: str) -> ctypes.CDLL:
    """From the cache, or built there. Without a safe cache, from a directory that is removed at once."""
    try:
        target = _own_cache() / name
        if not target.is_dir():
            with sole_writer(target):
                if not target.is_dir():  # no other process has built it in the meantime
                    with new_directory(target) as partial:
                        _compile(command, source, partial / _FILE)
        return ctypes.CDLL(str(target / _FILE))
    except (_NotOwn, DiskRefused):
        with tempfile.TemporaryDirectory() as fresh:
            _compile(command, source, Path(fresh) / _FILE)
            return ctypes.CDLL(str(Path(fresh) / _FILE))


def _compile(command: list[str], source: str, target: Path) -> None:
    subprocess.run(
        [*command, "-o", str(target)], input=source, capture_output=True, text=True, check=True, timeout=_SECONDS
    )


def _own_cache() -> Path:
    """The user's cache directory for this package; nobody else may write there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "icon_assets"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        raise _NotOwn from error
    if found.st_uid != os.getuid() or found.st_mode & 0o077:  # a link is open to everybody
        raise _NotOwn
    return folder
