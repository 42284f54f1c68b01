"""The exceptions whose message is meant for the user: one line with the cause and the fix."""

import errno
import re

from icon_assets.core.secrets import scrubbed
from icon_assets.core.text import printable

# Messages of libraries that allocate memory themselves: DuckDB, torch, the loader of shared libraries.
_MEMORY_IN_WORDS = re.compile(
    r"out of memory|can('t|not) allocate|bad.?alloc|allocation failure|failed to map segment|can't start new thread",
    re.IGNORECASE,
)


class IconError(Exception):
    """A fault the user can fix. The message is one line: what (file, row, key or value), why, and what to do. Secrets
    are removed from it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(scrubbed(message)))


class StoreDamaged(IconError):
    """A part of the store that can't be read."""

    def __init__(self, table: str, part: str, why: str) -> None:
        super().__init__(
            f"store table {table}: {part} {why}; `icon-assets repair` shows what can be done, `icon-assets repair "
            "--yes` does it, and the next run makes the rows again"
        )
        self.table = table
        self.part = part
        self.why = why


class DiskRefused(IconError):
    """A disk that is full or may not be written to. Nothing more could be stored, so it ends a run of many
    partitions."""

    def __init__(self, part: str, error: BaseException) -> None:
        said = str(error)
        self.is_of_disk = re.search("No space left|quota|Read-only|Permission|os error 13", said, re.I) is not None
        line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        super().__init__(
            f"{part}: could not be written ({line}); check free space and permissions, then run again: finished work "
            "is kept"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out, regardless of the library that raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return bool(_MEMORY_IN_WORDS.search(str(error)))
