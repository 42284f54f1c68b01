"""Safe display of data: no invisible characters and no active Markdown.

Every such string goes through `printable` (plain text: logs, errors, HTML beside its own escaping) or `markdown`
(everything that is rendered as Markdown: Dagster's UI, data cards on hubs)."""

import re
import unicodedata
from html import unescape
from typing import Any

# Control characters, line separators, half surrogates (in a name: bytes that are not UTF-8), characters that change the
# writing direction, and all others that Unicode makes invisible (Default_Ignorable_Code_Point).
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufff0-\ufffb"
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# the last: a combining class
_NON_JOINER = "\u200c"
_JOINER = "\u200d"
_KEYCAP = "\u20e3"
_VIRAMA = 9
_VARIANTS = "\ufe0e\ufe0f"  # of a symbol: as text, as emoji

# Texts that GFM turns into links automatically. Renderers do this after escapes are resolved, so only code prevents it.
_ADDRESS = r"(?:://|(?i:www)\.|(?<=[\w.+-])@)[\w.:@-]*"
# Markdown at any place (`_` within a word is not), and Markdown at the beginning of a block.
_SIGN = r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|\A>|\A[-+=#:](?=[-+=#:\s]|\Z)"
_LIVE = re.compile(rf"(?P<address>{_ADDRESS})|\A(?P<number>\d+)(?=[.)](?:\s|\Z))|{_SIGN}")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}  # inactive even if HTML is removed before Markdown is read
_DEAD = re.compile(r"\\([!-/:-@\[-`{-~])|`([^`]*)`|(&lt;|&amp;)")
_SCHEME = re.compile(r"\b(https?)://", re.IGNORECASE)
_NO_CODE = re.compile(r"[`|\\]")


class Markdown(str):
    """Text that is Markdown on purpose, and is not escaped again."""

    __slots__ = ()


def printable(text: str) -> str:
    """The text in one line, with escapes such as `\\u200b` for invisible characters.

    Joiners within words that need them (Persian, the scripts of India) and within emoji stay.
    """
    return _INVISIBLE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines; a tab becomes four spaces."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def unlinked(text: str) -> str:
    """`printable_lines` where addresses become links without any Markdown, as in Dagster's logs:
    http[:]//example.org."""
    return _SCHEME.sub(r"\1[:]//", printable_lines(text))


def linked(text: str) -> str:
    """The reverse of `unlinked`, for terminals."""
    return text.replace("[:]//", "://")


def _escape(match: re.Match[str]) -> str:
    before = match.string[: match.start()][-1:]
    after = match.string[match.end() :][:1]
    if _belongs(match[0], before, after):
        return match[0]
    return match[0].encode("unicode_escape").decode()


def _belongs(character: str, before: str, after: str) -> bool:
    """Whether an invisible character changes how its visible neighbours look."""
    if not before:
        return False
    if character in _VARIANTS:
        return after == _KEYCAP or unicodedata.category(before) in {"So", "Sm", "Po"}
    if character not in (_NON_JOINER, _JOINER) or not after:
        return False
    if character == _JOINER and unicodedata.category(after) in {"So", "Sm"}:
        return before in _VARIANTS or unicodedata.category(before) in {"So", "Sk"}
    if _VIRAMA in (unicodedata.combining(before), unicodedata.combining(after)):
        return True
    return unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL"


def markdown(value: Any) -> Markdown:
    """Markdown that shows the value as the text it is, in one line: no link, image, HTML, code or emphasis, and no
    block.

    Addresses are put in code, because renderers would turn them into links: http`://example.org`/page.
    """
    if isinstance(value, Markdown):
        return value
    return Markdown(_LIVE.sub(_dead, printable(str(value)).strip()))


def _dead(match: re.Match[str]) -> str:
    if match["address"]:
        return f"`{match[0]}`"
    if match["number"]:
        return f"{match[0]}\\"
    return _ENTITIES.get(match[0], f"\\{match[0]}")


def code(value: Any) -> Markdown:
    """The same in a fixed-width font, in which nothing ends the code."""
    text = printable(str(value)).strip()
    return Markdown(f"`{text}`") if text and not _NO_CODE.search(text) else markdown(text)


def plain(text: str) -> str:
    """The reverse of `markdown`, for terminals."""
    return _DEAD.sub(lambda match: match[1] or match[2] or unescape(match[3]), text)
