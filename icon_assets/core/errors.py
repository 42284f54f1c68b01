"""The exceptions whose message is meant for the user: a single line that names the cause and the fix."""

import re

from icon_assets.core.escaping import printable
from icon_assets.core.secrets import scrubbed


class IconError(Exception):
    """A fault the user can fix. The message is one line: what (file, row, key or value), why, and what to do. No secret is in it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(scrubbed(message)))


class StoreDamaged(IconError):
    """A part of the store that can't be read."""

    def __init__(self, table: str, part: str, why: str) -> None:
        super().__init__(
            f"store table {table}: {part} {why}; `icon-assets repair` says what can be done, `icon-assets repair --yes` does it, "
            "and the next run makes it again"
        )
        self.table, self.part, self.why = table, part, why


class DiskRefused(IconError):
    """A disk that is full or may not be written to. Nothing after it could be stored: it ends a run of many partitions."""

    def __init__(self, part: str, error: BaseException) -> None:
        said = str(error)
        self.is_of_disk = re.search("No space left|quota|Read-only|Permission|os error 13", said, re.I) is not None
        line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        super().__init__(
            f"{part}: could not be written ({line}); check free space and permissions, then run again: finished work is kept"
        )
