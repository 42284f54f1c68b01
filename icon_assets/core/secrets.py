"""Secrets of this process, and removing them from texts. Every text from a service that is raised, shown or stored goes
through `scrubbed`.

A service may repeat the key in some encoding. A malicious service can't be stopped, because it has the key.
"""

import base64
import re
from html import escape

HIDDEN = "***"
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#@'\"]+@")
_BASE64 = "A-Za-z0-9+/_=-"
_FEWEST_BASE64 = 8  # characters that do not depend on the text around the secret; fewer would hide other texts
_hidden: dict[str, re.Pattern[str]] = {}


def hide(secret: str) -> None:
    """From now on `scrubbed` takes this out of every text."""
    if secret and secret not in _hidden:
        _hidden[secret] = re.compile(
            "|".join([_escaped(secret), secret.encode().hex(), *_in_base64(secret)]), re.IGNORECASE
        )


def scrubbed(text: str) -> str:
    """The text without the secrets that were hidden, in any usual encoding, and without user names and passwords in
    URLs."""
    for pattern in _hidden.values():
        text = pattern.sub(HIDDEN, text)
    return _CREDENTIALS.sub(f"{HIDDEN}@", text)


def _escaped(secret: str) -> str:
    """Each character as it is, or as URLs, JSON, Python and HTML write it. Every repetition is bounded, so that time is
    linear in the text."""
    return "".join(
        rf"(?:\\{{0,4}}{re.escape(c)}|%(?:25){{0,3}}{ord(c):02x}|\\{{1,4}}(?:u00|x){ord(c):02x}"
        rf"|&#0{{0,5}}(?:{ord(c)}|x0{{0,5}}{ord(c):x});|{re.escape(escape(c))})"
        for c in secret
    )


def _in_base64(secret: str) -> list[str]:
    """Base64 of any text that contains the secret, such as `user:secret`. The secret may begin at each of three places
    of a group."""
    found = []
    for offset in range(3):
        length = offset + len(secret.encode())
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        whole = encoded[(0, 2, 3)[offset] : len(encoded) - (length % 3 != 0)]
        if len(whole) >= _FEWEST_BASE64:
            around = f"[{_BASE64}]{{0,4}}"
            found.append(around + re.escape(whole).replace("/", "[/_]").replace(re.escape("+"), "[-+]") + around)
    return found
