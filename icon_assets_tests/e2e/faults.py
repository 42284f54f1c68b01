"""Ends a process by SIGKILL at a chosen point of its own work, before its n-th change of a file or around a call of a
function; or gives it less disk, memory or rights.

To be called in the process that is to suffer it (`start(..., fault=...)`); nothing of the product knows about it.
"""

import ctypes
import functools
import importlib
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "os.symlink",
    "shutil.copyfile",
}
When = Literal["before", "after", "within"]


def die(*_: object) -> NoReturn:
    """With every process of the group, as `kill -9` of a run does."""
    os.killpg(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def forked(work: Callable[[], object], fault: Callable[[], None]) -> int:
    """Do the work in a fork of this process, after `fault`; its exit code, or minus the signal that ended it."""
    if (pid := os.fork()) == 0:
        os.setsid()
        fault()
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_change(number: int, below: str) -> None:
    """Die before the `number`-th time (from 0) that Python changes or opens for writing something in the folder
    `below`."""
    left = number

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if _changes(event, arguments, below):
            if left == 0:
                die()
            left -= 1

    sys.addaudithook(hear)


def count_changes(out: str, below: str) -> None:
    """Write to `out`, a line each, what `die_at_change` would count."""
    handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if _changes(event, arguments, below):
            os.write(handle, f"{event} {arguments[0]}\n".encode())

    sys.addaudithook(hear)


def _changes(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        return bool(flags and flags & _WRITES) and _is_below(path, below)
    return event in _CHANGES and any(_is_below(path, below) for path in arguments[:2])


def _is_below(path: object, below: str) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).absolute().is_relative_to(below)


def die_around(where: str, number: int, when: When, seconds: float = 0) -> None:
    """Die around the `number`-th call (from 0) of `where`, such as `icon_assets.core.store.tables:Store.publish`.

    `within`: so many seconds after it has begun, or at its end.
    """
    module, _, path = where.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    original = getattr(owner, name)
    calls = iter(range(sys.maxsize))

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) != number:
            return original(*arguments, **named)
        if when == "before":
            die()
        if when == "within":
            threading.Timer(seconds, die).start()
        original(*arguments, **named)
        die()

    setattr(owner, name, wrapped)


def die_in_compaction(number: int, seconds: float) -> None:
    """Die so many seconds after the `number`-th merging of small files (from 0) has begun; it begins with two files."""
    tables = importlib.import_module("icon_assets.core.store.tables")
    for limit in ("_COMPACT_FROM_FILES", "_COMPACT_WHOLE_FROM_FILES"):
        setattr(tables, limit, 2)
    die_around("icon_assets.core.store.tables:Store._compact", number, "within", seconds)


def limit_files(n_bytes: int) -> None:
    """No file gets larger, as `ulimit -f` or a quota does it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def limit_memory(mebibytes: int) -> None:
    """So much more address space than there is in use now, as `ulimit -v` does it."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def put_temporary_files(folder: str) -> None:
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None


class _Capabilities(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def give_up_privileges() -> None:
    """Root without its capabilities: may do what the owner and the mode of a file say, as everybody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(_Capabilities(0x20080522, 0)), nothing):
        raise OSError(ctypes.get_errno(), "capset")


def belong_to_somebody_else(folder: Path) -> None:
    """From now on nobody but root with its capabilities may write below `folder`; everybody may read."""
    for path in (folder, *folder.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, 54321, 54321, follow_symlinks=False)
        path.chmod(0o555 if path.is_dir() else 0o444)
