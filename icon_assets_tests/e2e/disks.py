"""Disks of their own for workspaces, small enough to be full and easily made read-only: a tmpfs in a mount namespace,
which also a user without any rights may make.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAMESPACES = {"user": 0x10000000, "mnt": 0x00020000}  # user first: it gives the right to enter the other


class Refused(Exception):
    """The kernel lets us mount nothing; the message says why."""


class Disk:
    """A tmpfs of so many MiB at `folder`, with what lay there, for processes that `enter`. Others see what `shown` last
    put there."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder = folder
        refusals = list[str]()
        if shutil.which("unshare") is None:
            raise Refused("the command unshare is not there")
        for rights in ("-rm", "-m"):  # of one's own making, or those of root
            self._shell = subprocess.Popen(
                ["unshare", rights, "sh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                self._do(f"mount -t tmpfs -o size={mebibytes}m tmpfs '{folder}'")
            except Refused as refusal:
                refusals.append(str(refusal))
            else:
                shutil.copytree(folder, self.seen, dirs_exist_ok=True)
                return
        raise Refused("; ".join(refusals))

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate()  # its end takes the disk with it

    @property
    def pid(self) -> int:
        return self._shell.pid

    @property
    def _ballast(self) -> Path:
        return self.seen / "ballast"

    @property
    def seen(self) -> Path:
        """Where processes that have not entered find what lies on the disk."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    def shown(self) -> None:
        """Put a copy of what lies on the disk where those find it who have not entered: the same files at the same
        paths."""
        for path in self.folder.iterdir():  # not the folder itself: that would take the disk away
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.seen, self.folder, dirs_exist_ok=True)

    def fill(self) -> None:
        """Somebody else's data take what is free."""
        free = os.statvfs(self.seen)
        with self._ballast.open("ab") as file, suppress(OSError):  # others were faster: there is less by now
            if free.f_bavail:
                os.posix_fallocate(file.fileno(), file.tell(), free.f_bavail * free.f_frsize)

    def empty(self) -> None:
        self._ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._do(f"mount -o remount,ro '{self.folder}'")
        yield
        self._do(f"mount -o remount,rw '{self.folder}'")

    def _do(self, command: str) -> None:
        assert self._shell.stdin
        assert self._shell.stdout
        try:
            self._shell.stdin.write(f"{command} && echo done || echo failed\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            raise Refused(self._shell.stdout.read().strip()) from None
        said = list[str]()
        for line in self._shell.stdout:
            if line == "done\n":
                return
            if line == "failed\n":
                break
            said.append(line.strip())
        raise Refused(" ".join(said))


def enter(pid: int) -> None:
    """See the disk of the process `pid`. Only a process of one thread can."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name, flag in _NAMESPACES.items():
        theirs = Path(f"/proc/{pid}/ns/{name}")
        ours = Path(f"/proc/self/ns/{name}")
        if theirs.readlink() == ours.readlink():
            continue
        with theirs.open() as namespace:
            if libc.setns(namespace.fileno(), flag):
                raise OSError(ctypes.get_errno(), f"{theirs}: could not be entered")
