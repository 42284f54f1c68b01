"""The one exception type whose message is meant for the user: a single line that names the cause and the mend."""


class IconError(Exception):
    """A fault the user can mend. The message is one line: what (file, row, key or value), why, and what to do."""
