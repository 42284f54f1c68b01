"""A thread that can write only in one directory. The kernel refuses all other writes (Linux 5.13 and later)."""

import ctypes
import os
import struct
import sys
from pathlib import Path

# The system calls have these numbers on every architecture; the rights are those of <linux/landlock.h>.
_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38
_WRITE_FILE = 1 << 1
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_REFER = 1 << 13
_TRUNCATE = 1 << 14


def write_only_below(directory: Path) -> bool:
    """From now on, this thread and the threads that it starts can create, change and remove files only below
    `directory`.

    This can't be undone for the thread. Returns False if the system does not support it; then nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = libc.syscall(_CREATE_RULESET, struct.pack("=Q", rights), ctypes.c_size_t(8), 0)
    beneath = os.open(directory, os.O_PATH)
    try:
        rule = struct.pack("=Qi", rights, beneath)
        return (
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) == 0
            and libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
            and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
        )
    finally:
        os.close(beneath)
        if ruleset >= 0:
            os.close(ruleset)
