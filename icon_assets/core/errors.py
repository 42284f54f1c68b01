"""The exceptions whose message is meant for the user: a single line that names the cause and the fix."""

from icon_assets.core.escaping import printable
from icon_assets.core.secrets import scrubbed


class IconError(Exception):
    """A fault the user can fix. The message is one line: what (file, row, key or value), why, and what to do. No secret is in it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(scrubbed(message)))


class DiskRefused(IconError):
    """A disk that is full or may not be written to. Nothing after it could be stored: it ends a run of many partitions."""

    def __init__(self, part: str, error: BaseException) -> None:
        line = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        super().__init__(
            f"{part}: could not be written ({line}); check free space and permissions, then run again: finished work is kept"
        )
