"""Items of multiple-choice tasks, read from local files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.formats import decode_json
from icon_assets.core.inputs.sample import Rejected, clean


@dataclass(frozen=True)
class ChoiceItem:
    """One multiple-choice item; `gold` is the index of the right choice, from 0."""

    query: str
    choices: tuple[str, ...]
    gold: int

    @property
    def question(self) -> str:
        """The query without the marks that some files put around it."""
        return self.query.removeprefix("Question:").strip().removesuffix("Answer:").strip()

    @property
    def prompt(self) -> str:
        """The text before a choice: questions get `Question:` and `Answer:`, other texts stay as they are."""
        marked = self.query.startswith("Question:")
        if not marked and not self.query.endswith("?"):
            return self.query
        end = "" if self.query.endswith("Answer:") else "\nAnswer:"
        return ("" if marked else "Question: ") + self.query + end


def read_choice_items(path: Path) -> list[ChoiceItem]:
    """Read a JSON Lines file with `query`, `choices`, `gold`; empty lines and other fields are ignored.

    Raises:
        IconError: no such file, not UTF-8, no items, or a row that is not an item. The message names file and row.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise IconError(f"{path}: no such file; fix evaluation.multiple_choice") from error
    except UnicodeDecodeError as error:
        raise IconError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    items = [_choice_item(line, f"{path}, row {row}") for row, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise IconError(f"{path}: holds no items; add rows with `query`, `choices`, `gold`, or remove the task")
    return items


def _choice_item(line: str, where: str) -> ChoiceItem:
    row = _choice_row(line, where)
    choices = row["choices"]
    gold = row["gold"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise IconError(f"{where}: `choices` must be a list of at least 2 texts; got {str(choices)[:80]!r}")
    last = len(choices) - 1
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold <= last:
        raise IconError(f"{where}: `gold` must be the right choice's index, 0 to {last}; got {str(gold)[:80]!r}")
    texts = tuple(_choice_text(choice, "choices", where) for choice in choices)
    return ChoiceItem(_choice_text(row["query"], "query", where), texts, gold)


def _choice_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = decode_json(line)
    except Rejected as error:
        raise IconError(f"{where}: not valid JSON ({error}); write one object per line") from error
    if not isinstance(row, dict):
        raise IconError(f"{where}: must be an object with `query`, `choices`, `gold`, not {type(row).__name__}")
    if missing := [key for key in ("query", "choices", "gold") if row.get(key) is None]:
        raise IconError(f"{where}: `{missing[0]}` is missing; a row needs `query`, `choices` and `gold`")
    return row


def _choice_text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise IconError(f"{where}: `{key}` must hold text, not {type(value).__name__}; put it in quotes")
    try:
        text = clean(value)
    except Rejected as error:
        raise IconError(f"{where}: `{key}`: {error}; fix the text") from error
    if not text:
        raise IconError(f"{where}: `{key}` holds an empty text; fill it in or remove the row")
    return text
