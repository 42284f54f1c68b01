"""A sample in canonical form, and the conversion of the accepted row formats. Nothing here accesses files.

Accepted rows: Alpaca (`instruction`, `input`, `output`), prompt/completion, and chat `messages` (the last assistant
turn is the response, the rest the prompt). Equal content gets an equal id, regardless of its format.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from icon_assets.core.digests import canonical_json, digest

PROMPT_KEYS = ("prompt", "inputs", "question")
RESPONSE_KEYS = ("completion", "response", "answer")
ALPACA_RESPONSE_KEYS = ("output", "response")
MAX_MARKS = 200
ROLES = ("system", "user", "assistant", "tool")


class Rejected(ValueError):
    """An unusable row. `reason` is one of the fixed words of the quarantine table; the message is the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One instruction-tuning sample. `turns` holds the chat before the instruction, oldest first."""

    instruction: str
    input: str
    response: str
    turns: tuple[Turn, ...] = ()

    @cached_property
    def sample_id(self) -> str:
        """32 hex characters: the digest of the canonical content (the design's `sample_id` and `probe_id`)."""
        content: list[Any] = [self.instruction, self.input, self.response]
        if self.turns:
            content.append([[turn.role, turn.content] for turn in self.turns])
        return digest(content)

    @property
    def n_chars(self) -> int:
        return len(self.instruction) + len(self.input) + len(self.response) + sum(len(t.content) for t in self.turns)

    @property
    def prompt_text(self) -> str:
        """Everything before the response as plain text, for comparing samples with each other."""
        return "\n".join([*(turn.content for turn in self.turns), self.instruction, self.input]).strip()

    @property
    def question(self) -> str:
        """The question without the system prompt: two samples with the same question are one test item."""
        turns = [turn.content for turn in self.turns if turn.role != "system"]
        return "\n".join([*turns, self.instruction, self.input]).strip()

    def turns_json(self) -> str | None:
        """The earlier turns as stored in tables: JSON text, or None."""
        return canonical_json([[turn.role, turn.content] for turn in self.turns]) if self.turns else None


def parse_row(row: Any, max_chars: int, *, unanswered: bool = False) -> tuple[Sample, dict[str, Any]]:
    """Turn one decoded row into a sample and the fields that were not part of it.

    Args:
        unanswered: only the prompt is needed; a missing response is replaced by a dash.

    Raises:
        Rejected: reasons `wrong_type`, `missing_field`, `empty_prompt`, `empty_response`, `over_limit`, and those of
            `clean`.
    """
    if not isinstance(row, Mapping):
        raise Rejected("wrong_type", f"a row must be an object with fields, not {type(row).__name__}")
    if unanswered:
        row = _with_response(row)
    if row.get("messages") is not None:
        sample = _from_messages(row["messages"])
        used = {"messages"}
    elif row.get("instruction") is not None:
        sample, used = _from_alpaca(row)
    else:
        sample, used = _from_prompt(row)
    if not sample.instruction and not sample.input:
        raise Rejected("empty_prompt", "the prompt is empty")
    if not sample.response:
        raise Rejected("empty_response", "the response is empty")
    if sample.n_chars > max_chars:
        raise Rejected("over_limit", f"{sample.n_chars} characters; pool.max_chars is {max_chars}")
    return sample, {key: value for key, value in row.items() if key not in used and value is not None}


def _with_response(row: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = row.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        is_open = messages[-1].get("role") != "assistant"
        return {**row, "messages": [*messages, {"role": "assistant", "content": "-"}]} if is_open else row
    keys = RESPONSE_KEYS if row.get("instruction") is None else ALPACA_RESPONSE_KEYS
    return row if any(row.get(key) for key in keys) else {**row, keys[0]: "-"}


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Sample, set[str]]:
    response = _first_key(row, ALPACA_RESPONSE_KEYS)
    sample = Sample(_text(row, "instruction"), _text(row, "input", ""), _text(row, response))
    return sample, {"instruction", "input", response}


def _from_prompt(row: Mapping[str, Any]) -> tuple[Sample, set[str]]:
    prompt = _first_key(row, PROMPT_KEYS)
    response = _first_key(row, RESPONSE_KEYS)
    return Sample(_text(row, prompt), "", _text(row, response)), {prompt, response}


def _from_messages(messages: Any) -> Sample:
    if not isinstance(messages, list) or not messages:
        raise Rejected("wrong_type", "`messages` must be a non-empty list")
    turns = [_turn(number, message) for number, message in enumerate(messages, 1)]
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise Rejected("missing_field", "`messages` has no assistant turn")
    before = turns[:last]
    if not before or before[-1].role == "assistant":
        raise Rejected("missing_field", "`messages` has no user turn before the last assistant turn")
    return Sample(before[-1].content, "", turns[last].content, tuple(before[:-1]))


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise Rejected("wrong_type", f"message {number} must be an object with `role` and `content`")
    role = _text(message, "role")
    if role not in ROLES:
        raise Rejected("wrong_type", f"message {number}: role {role[:40]!r} is not one of {', '.join(ROLES)}")
    return Turn(role, _text(message, "content"))


def _first_key(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    found = next((key for key in keys if row.get(key) is not None), None)
    if found is None:
        has = ", ".join(f"`{key}`" for key in list(row)[:8]) or "nothing"
        raise Rejected("missing_field", f"none of {', '.join(f'`{key}`' for key in keys)}; the row has {has}")
    return found


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None:
        if default is None:
            raise Rejected("missing_field", f"`{key}` is missing")
        return default
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"`{key}` must be text, not {type(value).__name__}")
    return clean(value)


def clean(text: str) -> str:
    """Canonical text: NFC, line ends as `\\n`, no outer white space.

    Control characters are kept, because a sample may be about form feeds or terminal escape codes. NUL is rejected,
    because it comes from damage, such as a block of zeros, or from a different encoding.

    Raises:
        Rejected: `not_utf8`, when JSON escapes left half of a surrogate pair, which no UTF-8 file can hold;
            `control_chars` for NUL; `over_limit` for too many combining marks in a row, which take very long to
            normalize.
    """
    if not text.isascii():
        if _marks().search(text):
            raise Rejected("over_limit", f"more than {MAX_MARKS} combining marks in a row")
        text = unicodedata.normalize("NFC", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejected("not_utf8", "the text holds half of a surrogate pair") from error
    if "\0" in text:
        raise Rejected("control_chars", "the text holds NUL, which is no text; the file may be damaged")
    return text


@cache
def _marks() -> re.Pattern[str]:
    """More combining marks in a row than any writing system uses. Sorting them takes quadratic time."""
    marks = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code)))
    return re.compile(f"[{''.join(marks)}]{{{MAX_MARKS + 1}}}")


def sample_of(row: Mapping[str, Any]) -> Sample:
    """A sample from a table row with `instruction`, `input`, `response` and `turns`."""
    turns = tuple(Turn(role, content) for role, content in json.loads(row["turns"])) if row["turns"] else ()
    return Sample(row["instruction"], row["input"], row["response"], turns)
